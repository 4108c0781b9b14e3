"""A row of the history: what it has of the figures, and how it is printed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from peftlab.metric_names import UNDEFINED, MetricName
from peftlab.objectives.base import Learned, shown
from peftlab.objectives.parts.blocks import by_task
from peftlab.training.places import place_in_words


def figures_of_row(objective: Learned, train: dict[str, Any], validation: dict[str, Any]) -> dict[str, Any]:
    """The figures of both splits by the names that the history has for them; validation has its details too."""
    found: dict[str, Any] = {}
    for split, values in (("train", train), ("validation", validation)):
        found |= {MetricName(split, name).in_history: values[name] for name in objective.every_epoch()}
        found |= {name.in_history: number for name, number in by_task(values, split).items()}
        if UNDEFINED in values:
            found[MetricName(split, UNDEFINED).in_history] = values[UNDEFINED]
    found |= {MetricName("validation", name).in_history: validation[name] for name in objective.details}
    for task, one in objective.tasks().items():
        details = validation["tasks"][task]
        found |= {MetricName("validation", name, task).in_history: details[name] for name in one.details}
    return found


def in_words(
    objective: Learned,
    row: Mapping[str, Any],
    train: Mapping[str, Any],
    validation: Mapping[str, Any],
    epochs: int,
    width: int | None = None,
) -> str:
    """What is printed of ``row``, one of a run of ``epochs`` epochs; in several lines where ``width`` needs it."""
    figure, seconds = objective.figure(objective.selects), row["train_seconds"]
    place = place_in_words(row, epochs)
    parts = [
        f"train loss {shown(train['loss'])}  {figure.title} {shown(train[figure.name])}",
        f"validation loss {shown(validation['loss'])}  {figure.title} {shown(validation[figure.name])}",
        f"{seconds:.1f} s  {train['rows'] / max(seconds, 1e-9):.1f} samples/s",
    ]
    lines = [place]
    for part in parts:
        if width is not None and len(lines[-1]) + 3 + len(part) > width:
            lines.append(" " * len(place))
        lines[-1] += f"   {part}"
    return "\n".join(lines)


class Stopwatch:
    """Seconds between start and stop, without the pauses."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._since: float | None = None

    def start(self) -> None:
        """Go on."""
        if self._since is None:
            self._since = time.perf_counter()

    def pause(self) -> None:
        """Hold, until the next start."""
        if self._since is not None:
            self._seconds += time.perf_counter() - self._since
            self._since = None

    def seconds(self) -> float:
        """So many so far."""
        return self._seconds + (0.0 if self._since is None else time.perf_counter() - self._since)

    def add(self, seconds: float) -> None:
        """Add those of an earlier attempt."""
        self._seconds += seconds

    def stop(self) -> float:
        """The seconds; then begin at 0."""
        self.pause()
        seconds, self._seconds = self._seconds, 0.0
        return seconds
