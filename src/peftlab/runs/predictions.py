"""A test's outputs as predictions, a row a text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from peftlab.data.base import Splits, Texts
from peftlab.data.module import row_hash
from peftlab.objectives.base import Learned, Objective
from peftlab.objectives.parts.task import Task, TaskLabel
from peftlab.records.predictions import to_table

if TYPE_CHECKING:
    import pyarrow

    from peftlab.runs.generating import Judged


def predictions_table(
    learned: Learned, splits: Splits, rows: Texts, outputs: Tensor, judged: Judged | None = None
) -> pyarrow.Table:
    """What :mod:`peftlab.records.predictions` describes.

    Args:
        learned: what the data set learns.
        splits: say names and tasks.
        rows: of the split, in its order.
        outputs: of the head, (N, C) float32, in the same order.
        judged: the answers that were written, if any were.
    """
    columns: dict[str, list[Any]] = {
        "row": list(range(len(rows))),
        "hash": [row_hash(text, label) for text, label in zip(rows.texts, rows.labels, strict=True)],
    }
    if splits.tasks:
        columns |= _of_tasks(learned, splits, rows, outputs)
    else:
        assert isinstance(learned, Objective)
        columns |= learned.kept(outputs, rows.labels, splits.label_names)
    if judged is not None:
        columns |= judged.columns
    return to_table(columns, list(splits.label_names))


def _of_tasks(learned: Learned, splits: Splits, rows: Texts, outputs: Tensor) -> dict[str, list[Any]]:
    """The task of each row, and the columns of every task, empty where a row is of another."""
    numbers = [_task(label, splits.tasks) for label in rows.labels]
    columns: dict[str, list[Any]] = {"task": [splits.tasks[number].name for number in numbers]}
    for mine, found in _kept_apart(learned, splits, rows, outputs, numbers):
        for name, cells in found.items():
            column = columns.setdefault(name, [None] * len(rows))
            for row, cell in zip(mine, cells, strict=True):
                column[row] = cell
    return columns


def _kept_apart(
    learned: Learned, splits: Splits, rows: Texts, outputs: Tensor, numbers: list[int]
) -> list[tuple[list[int], dict[str, list[Any]]]]:
    """Of each task that has any: its rows, and their columns; gold numbers apart from gold names."""
    kept = []
    for number, task in enumerate(splits.tasks):
        if mine := [row for row, of in enumerate(numbers) if of == number]:
            one = learned.tasks().get(task.name, learned)
            assert isinstance(one, Objective)
            labels = [_own(rows.labels[row], task) for row in mine]
            names = [name.removeprefix(f"{task.name}/") for name in splits.label_names[task.first : task.stop]]
            kept.append((mine, one.kept(outputs[mine][:, task.first : task.stop], labels, names)))
    named = [isinstance(found["gold"][0], str) for _, found in kept]
    for (_, found), is_name in zip(kept, named, strict=True):
        if any(named) and not is_name:
            found["gold_value"] = found.pop("gold")
    return kept


def _task(label: Any, tasks: tuple[Task, ...]) -> int:
    if isinstance(label, TaskLabel):
        return label.task
    return next(number for number, task in enumerate(tasks) if label in task.classes)


def _own(label: Any, task: Task) -> Any:
    return label.label if isinstance(label, TaskLabel) else label - task.first
