"""Tasks of different objectives in one model, with tensors: batches, losses and figures.

A row is scored by its own task's block of the head's last layer alone, z_k (C_k of all C outputs), and by its own
task's objective. With the loss l of a row of task k,

    loss of a batch = 1/B Σ_i l_k(i)(z_k(i), y_i)        the mean over the batch's B rows

so a block has no gradient from other tasks' rows, and a task weighs as much as it has rows (``data.mixing``) and as
its loss is large: nothing is rescaled. A squared error grows with the square of the labels' unit, while a cross-entropy
of C classes begins near log C; divide labels by their range where they should weigh about the same.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from peftlab.metric_names import UNDEFINED
from peftlab.objectives.parts.blocks import TaskLosses
from peftlab.objectives.parts.mixture import Mixture
from peftlab.objectives.parts.task import Task

Targets = Mapping[str, Mapping[str, Tensor]]
"""Of each task that a batch has rows of: ``rows``, their numbers in the batch, (b,) int64, and ``target``, what its
objective compares them to."""


def targets_of(mixture: Mixture, rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Tensor]]:
    """The targets of a batch of ``rows``, whose labels say their task."""
    found: dict[str, dict[str, Tensor]] = {}
    for number, (task, one) in enumerate(mixture.tasks().items()):
        mine = [index for index, row in enumerate(rows) if row["label"].task == number]
        if mine:
            own = [{**rows[index], "label": rows[index]["label"].label} for index in mine]
            found[task] = {"rows": torch.tensor(mine, dtype=torch.int64), "target": one.target(own)}
    return found


class MixedTasks:
    """Whose outputs are whose, and the losses of a batch."""

    def __init__(self, mixture: Mixture, tasks: Sequence[Task]) -> None:
        self.mixture = mixture
        self.blocks = {task.name: slice(task.first, task.stop) for task in tasks}

    def own(self, outputs: Tensor, task: str, rows: Tensor) -> Tensor:
        """The outputs (b, C_k) of a task's ``rows`` (b,), of ``outputs`` (B, C)."""
        return outputs[rows][:, self.blocks[task]]

    def losses(self, outputs: Tensor, targets: Targets, label_smoothing: float = 0.0) -> dict[str, Tensor]:
        """The mean loss of each task's rows; smoothed where that means something."""
        objectives = self.mixture.tasks()
        return {
            task: objectives[task].loss(
                self.own(outputs, task, given["rows"]),
                given["target"],
                label_smoothing=label_smoothing if objectives[task].smooths_labels else 0.0,
            )
            for task, given in targets.items()
        }

    def mean(self, losses: Mapping[str, Tensor], targets: Targets) -> Tensor:
        """The mean over the batch's rows, from the tasks' means."""
        rows = {task: len(given["rows"]) for task, given in targets.items()}
        return torch.stack([losses[task] * rows[task] for task in losses]).sum() / sum(rows.values())


class MixtureMetrics(nn.Module):
    """Figures of each task over its own rows, and their means.

    ``compute()`` has ``tasks``: name to what its objective has of a split of its own. The figures beside it are
    unweighted means over the tasks that have rows, and ``rows`` is their sum.
    """

    def __init__(self, mixed: MixedTasks, names: Sequence[str]) -> None:
        super().__init__()
        self._mixed = mixed
        self._names = {
            task: [name.removeprefix(f"{task}/") for name in names[block]] for task, block in mixed.blocks.items()
        }
        self.losses = TaskLosses(len(mixed.blocks))
        # by number: a task may be called as a method of every module
        self.states = nn.ModuleList(
            nn.ModuleDict(one.states(self._names[task])) for task, one in mixed.mixture.tasks().items()
        )

    def update(self, outputs: Tensor, targets: Targets, losses: Mapping[str, Tensor]) -> None:
        """Add a batch: ``outputs`` (B, C), its targets, and the mean loss of each task's rows."""
        for number, (task, one) in enumerate(self._mixed.mixture.tasks().items()):
            if task not in targets:
                continue
            rows, states = targets[task]["rows"], self.states[number]
            assert isinstance(states, nn.ModuleDict)
            one.update(states, self._mixed.own(outputs, task, rows), targets[task]["target"])
            self.losses.update(losses[task].expand(len(rows)), torch.full_like(rows, number))

    def compute(self) -> dict[str, Any]:
        """See the class; then start anew."""
        losses = self.losses.compute().tolist()
        self.losses.reset()
        mixture, tasks = self._mixed.mixture, {}
        for (task, one), states, loss in zip(mixture.tasks().items(), self.states, losses, strict=True):
            assert isinstance(states, nn.ModuleDict)
            tasks[task] = {"loss": loss} | one.named(one.compute(_computed(states)), self._names[task])
        means, undefined = mixture.means(tasks), mixture.undefined(tasks)
        rows = sum(figures["rows"] for figures in tasks.values())
        return means | ({UNDEFINED: undefined} if undefined else {}) | {"rows": rows, "tasks": tasks}


def _computed(states: nn.ModuleDict) -> dict[str, Tensor]:
    """What the metrics of one task hold over all processes; then they start anew."""
    found = {}
    for name, state in states.items():
        with warnings.catch_warnings():  # a process may have had no row of the task
            warnings.filterwarnings("ignore", message="The ``compute`` method of metric")
            found[name] = state.compute()  # type: ignore[operator]
        state.reset()  # type: ignore[operator]
    return found
