"""What is learned where a model's tasks have different objectives, or one that is no classification. Imports no torch.

Each task keeps its objective: its block of the head's outputs, its loss, its figures, its predictions. What is computed
with tensors is told in :mod:`peftlab.objectives.parts.mixed`. Of all tasks together there are two figures:

    loss         the unweighted mean of the tasks' mean losses on the split
    task_mean    the unweighted mean of the tasks' selecting figures (accuracy, Pearson, …), the more the better;
                 task_mean_error where less is better of each of them

Where more is better of one task's figure and less of another's, their mean means nothing: there is none, and
``trainer.monitor`` must name what selects. Several classifications have a form of their own, which is older
(:mod:`peftlab.objectives.parts.blocks`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from peftlab.metric_names import UNDEFINED, task_and_figure, task_figure
from peftlab.objectives.base import LOSS, TASK_MEANS, Contradiction, Figure, Label, Learned, Objective

NAME = "mixture"
"""What records call it."""


class Mixture(Learned):
    """Several tasks, each by its own objective."""

    name = NAME
    loss_title = "mean of the tasks' losses"

    def __init__(self, tasks: Mapping[str, Objective]) -> None:
        """A mixture of ``tasks``: name to objective, in the order of their outputs."""
        self._tasks = dict(tasks)
        self.about = f"several tasks: {', '.join(f'{task}, {one.about}' for task, one in tasks.items())}"
        self.figures = tuple(_mean_of([one.figure(one.selects) for one in tasks.values()]))
        self.selects = self.figures[0].name if self.figures else LOSS.name
        self.smooths_labels = any(one.smooths_labels for one in tasks.values())

    def tasks(self) -> Mapping[str, Objective]:
        """Name to objective."""
        return self._tasks

    def figure(self, name: str) -> Figure:
        """One of the mixture's, one of a task's (``scores/pearson``), or what such a figure is called in a table."""
        own = {figure.name: figure for figure in (LOSS, *self.figures)}
        if name in own:
            return own[name]
        task, inner = task_and_figure(name)
        if task is not None:
            found = self._tasks[task].figure(inner)
            return replace(found, name=name, title=f"{found.title} of {task}")
        known = (figure for one in self._tasks.values() for figure in one.figures)
        return next(figure for figure in known if figure.name == name)

    def monitors(self) -> tuple[str, ...]:
        """Figures of all tasks together, then those of each."""
        of_tasks = (task_figure(task, name) for task, one in self._tasks.items() for name in one.every_epoch())
        return (*self.every_epoch(), *of_tasks)

    def shown_figures(self) -> tuple[str, ...]:
        """The mean, every figure that a task has, the loss."""
        of_tasks = (name for one in self._tasks.values() for name in one.every_epoch() if name != "loss")
        return (*(figure.name for figure in self.figures), *dict.fromkeys(of_tasks), "loss")

    def facts(self) -> dict[str, Any]:
        """The mixture's, and under ``tasks`` those of each."""
        return super().facts() | {"tasks": {task: one.facts() for task, one in self._tasks.items()}}

    def selecting(self) -> dict[str, str]:
        """Task to the name of its selecting figure."""
        return {task: one.selects for task, one in self._tasks.items()}

    def labels_in_words(self, labels: Sequence[Label], names: Sequence[str]) -> str:
        """``reviews: bad 43, good 43; scores: labels 0 to 5, mean 2.5``."""
        return "; ".join(
            f"{task}: {one.labels_in_words([own for number, own in labels if number == mine], _own(task, names))}"
            for mine, (task, one) in enumerate(self._tasks.items())
        )

    def detail_rows(self, values: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, float]]]:
        """Those of each task."""
        for task, one in self._tasks.items():
            yield from ((f"{task}/{name}", row) for name, row in one.detail_rows(values["tasks"][task]))

    def contradictions(
        self, figures: Mapping[str, Any], data: Mapping[str, Any], split: str
    ) -> Iterator[Contradiction]:
        """Within each task; then the means against the tasks' figures."""
        for task, one in self._tasks.items():
            inner = one.contradictions(figures["tasks"][task], data["tasks"][task], split)
            yield from ((f"tasks.{task}.{key}", said) for key, said in inner)
        for name, value in self.means(figures["tasks"]).items():
            if repr(figures[name]) != repr(value):
                yield name, f"{figures[name]}, but the mean over the tasks is {value}"

    def means(self, tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
        """The mixture's figures from those of its ``tasks``; the mean of what is partly undefined is None.

        Tasks without rows do not count.
        """
        seen = {task: figures for task, figures in tasks.items() if figures["rows"]}
        found: dict[str, float | None] = {"loss": _mean([figures["loss"] for figures in seen.values()]) or 0.0}
        for figure in self.figures:
            found[figure.name] = _mean([figures[self._tasks[task].selects] for task, figures in seen.items()])
        return found

    def undefined(self, tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
        """Why figures of ``tasks`` are undefined, by ``task/figure``, and why their mean then is."""
        found = {
            task_figure(task, name): why for task, own in tasks.items() for name, why in own.get(UNDEFINED, {}).items()
        }
        means = self.means(tasks)
        for figure in self.figures:
            if means[figure.name] is None:
                without = [task_figure(t, name) for t, name in self.selecting().items() if tasks[t].get(name) is None]
                found[figure.name] = f"undefined: so is {', '.join(without)}"
        return found


def _own(task: str, names: Sequence[str]) -> list[str]:
    """The names of one task's outputs, without the task's."""
    return [name.removeprefix(f"{task}/") for name in names if name.startswith(f"{task}/")]


def _mean(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers and len(numbers) == len(values) else None


def _mean_of(figures: Sequence[Figure]) -> Iterator[Figure]:
    """The figure that is the mean of ``figures``, if all better the same way."""
    if len({figure.better for figure in figures}) == 1:
        bounds: dict[str, Any] = {}
        for name, widest in (("low", min), ("high", max)):
            ends = [getattr(figure, name) for figure in figures]
            bounds[name] = None if None in ends else widest(ends)
        yield replace(TASK_MEANS[figures[0].better], **bounds)
