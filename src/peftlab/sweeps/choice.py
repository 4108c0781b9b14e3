"""Choosing values for a cell: what was tried, what came of it, and which is best. Imports no torch.

Runs of the first seed are compared on validation. A run that failed, was stopped early or diverged is never chosen;
of equals the first is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Literal

from peftlab.errors import ConfigError
from peftlab.records.divergence import diverged
from peftlab.sweeps.declaration import assignments, lower_is_better
from peftlab.sweeps.record_paths import NOT_IN_EVERY_RECORD
from peftlab.training.selection import selected_row

State = Literal["open", "finished", "diverged", "pruned", "failed"]


@dataclass(frozen=True)
class Tried:
    """One combination of values, run with the first seed."""

    parameters: Mapping[str, Any]
    state: State = "open"
    """``open``: not ended yet."""
    record: Mapping[str, Any] | None = None
    value: float | None = None
    """What the choice is made by; None unless ``finished``."""
    reason: str = ""
    """Why there is no value."""

    @property
    def name(self) -> str:
        """``optim.lr=0.001, peft.rank=4``."""
        return ", ".join(assignments(self.parameters))


@dataclass(frozen=True)
class Choice:
    """What was tried for a cell, and what was chosen."""

    by: str
    """Where the value stands that was compared."""
    tried: Sequence[Tried] = field(default_factory=list)
    chosen: Tried | None = None
    """None until all have ended, or if none can be chosen."""

    @property
    def settled(self) -> bool:
        """Whether all that was to be tried has ended."""
        return all(one.state != "open" for one in self.tried)


def value_of(record: Mapping[str, Any], path: str) -> float | None:
    """The number at ``path`` (``metrics.test.loss``); None where the record says there is none.

    Raises:
        ConfigError: if records have no such place.
    """
    found: Any = record
    for part in path.split("."):
        if found is None:
            return None
        if path in NOT_IN_EVERY_RECORD and isinstance(found, Mapping) and part not in found:
            return None
        if not isinstance(found, Mapping) or part not in found:
            raise ConfigError(f"no record has a value at '{path}': there is no '{part}'.")
        found = found[part]
    if found is not None and (isinstance(found, bool) or not isinstance(found, int | float)):
        raise ConfigError(f"the value at '{path}' is no number: {found!r}.")
    return found


def value_of_kept(record: Mapping[str, Any], metric: str) -> float | None:
    """``metric`` (``validation/loss``) where the run's weights were kept."""
    row = selected_row(record)
    assert row is not None, "a record that was not edited names a row of its history"
    value = row.get(metric)
    return None if value is None else float(value)


def ended(parameters: Mapping[str, Any], record: Mapping[str, Any], value: float | None) -> Tried:
    """A combination whose run is finished; a loss or a value that is not finite means that it diverged."""
    if value is None and not diverged(record):
        return Tried(parameters, "diverged", record, None, "undefined")
    if value is None or not isfinite(value) or diverged(record):
        return Tried(parameters, "diverged", record, None, "diverged")
    return Tried(parameters, "finished", record, value)


def best(tried: Sequence[Tried], by: str) -> Tried | None:
    """The best of those that have a value; the first of equals."""
    finished = [one for one in tried if one.value is not None]
    sign = -1.0 if lower_is_better(by) else 1.0
    return max(finished, key=lambda one: sign * (one.value or 0.0), default=None)
