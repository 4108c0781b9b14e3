"""A task of several in one data set, and labels that say theirs. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Task:
    """One task of several in one data set: its name, and the outputs of the head, or classes, that are its own."""

    name: str
    first: int
    """Index of its first class among all classes."""
    stop: int
    """Index behind its last class."""
    objective: str = "classification"
    """What is learned of its rows."""

    @property
    def classes(self) -> range:
        """Indices of its classes."""
        return range(self.first, self.stop)


class TaskLabel(NamedTuple):
    """The label of a row where tasks have different objectives."""

    task: int
    """The task's number, from 0."""
    label: Any
    """What the task's objective has made of the cell."""

    def __str__(self) -> str:
        return f"{self.task}:{self.label}"


class TaskOf:
    """The number of the task that a row is of, from its label."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._of_class = tuple(number for number, task in enumerate(tasks) for _ in task.classes)

    def __call__(self, label: Any) -> int:
        """The task of a row with ``label``."""
        return label.task if isinstance(label, TaskLabel) else self._of_class[label]
