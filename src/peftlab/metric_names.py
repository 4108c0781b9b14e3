"""What a metric is called: one name, and how records, histories and people spell it. Imports no torch.

A history (metrics.csv, loggers, callbacks) says ``validation/accuracy``, or ``validation/news/accuracy`` of one task of
several; a record has the value at ``metrics.validation.accuracy``, or ``metrics.validation.tasks.news.accuracy``; a
table calls it ``validation accuracy``. No other module puts these together or takes them apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict

SPLITS = ("train", "validation", "test")
RECORD_PART = "metrics"
"""The part of a record that the metrics stand in."""
UNDEFINED = "undefined"
"""Stands beside the figures of a split: name of a figure that is undefined → why."""
_TASKS = "tasks"


@dataclass(frozen=True)
class MetricName:
    """A figure of a split, of all its rows or of those of one task."""

    split: str
    figure: str
    """``accuracy``; ``per_class.positive.f1`` of what has parts."""
    task: str | None = None

    @property
    def in_record(self) -> str:
        """Where a record has it: ``metrics.test.accuracy``."""
        tasks = [] if self.task is None else [_TASKS, self.task]
        return ".".join([RECORD_PART, self.split, *tasks, self.figure])

    @property
    def in_history(self) -> str:
        """What histories, loggers and callbacks call it: ``test/accuracy``."""
        return "/".join([self.split, *([] if self.task is None else [self.task]), self.figure])

    @property
    def title(self) -> str:
        """What people call it: ``test accuracy``."""
        return self.in_record.partition(".")[2].replace(".", " ").replace("_", " ")

    @classmethod
    def from_record(cls, path: str) -> MetricName | None:
        """The metric at that place of a record; None if the place is not below ``metrics.<split>``."""
        part, _, rest = path.partition(".")
        split, _, figure = rest.partition(".")
        if part != RECORD_PART or split not in SPLITS or not figure:
            return None
        first, _, below = figure.partition(".")
        task, _, of_task = below.partition(".")
        return cls(split, of_task, task) if first == _TASKS and of_task else cls(split, figure)

    @classmethod
    def from_history(cls, name: str) -> MetricName | None:
        """The metric that a history calls so; None if it is no figure of a split, as ``lr``."""
        split, _, rest = name.partition("/")
        task, _, figure = rest.rpartition("/")
        return cls(split, figure, task or None) if split in SPLITS and figure else None


def task_figure(task: str, figure: str) -> str:
    """What a figure of one task is called beside those of all tasks: ``news/accuracy``, as in ``trainer.monitor``."""
    return f"{task}/{figure}"


def task_and_figure(name: str) -> tuple[str | None, str]:
    """Task and figure of what :func:`task_figure` gave; no task, of a figure of all rows."""
    task, _, figure = name.rpartition("/")
    return task or None, figure


def record_part(split: str) -> str:
    """Where a record has all figures of ``split``: ``metrics.test``."""
    return f"{RECORD_PART}.{split}"


TRAIN_LOSS = MetricName("train", "loss")
TrainLossOfRow = TypedDict("TrainLossOfRow", {"train/loss": Any}, total=False)
"""What a row of a history holds at :data:`TRAIN_LOSS`, for readers that pass over the rest."""
