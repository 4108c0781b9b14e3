"""Trainings that diverged, as records say it, those of earlier versions too. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

from peftlab.metric_names import TRAIN_LOSS

STATUS = "diverged"
"""Status of a run that stopped because its loss or gradient was no finite number; it has a history and no results.

Earlier versions trained on and called such a run finished: its training loss is not finite.
"""
ENDED = ("finished", STATUS)
"""What a record says of a run that is not to be run again."""


def diverged(record: Mapping[str, Any]) -> bool:
    """Whether the training of a run, which has ended, diverged."""
    loss = TRAIN_LOSS.in_history
    losses = [row[loss] for row in record.get("history", ()) if loss in row]
    return record.get("status") == STATUS or not all(map(finite, losses))


def finite(value: Any) -> bool:
    """Whether ``value`` is a finite number; null, as records write what is not, is none."""
    return isinstance(value, int | float) and isfinite(value)


def in_words(record: Mapping[str, Any]) -> str:
    """What happened, in a line."""
    return str(record.get("error") or "its training loss is no finite number")


def without_bare_words(value: Any) -> Any:
    """``value`` with null for every number that JSON has no word for: bare ``NaN`` makes a file unreadable for many."""
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: without_bare_words(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_bare_words(inner) for inner in value]
    return value
