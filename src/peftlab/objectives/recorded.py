"""What records say of their objective, and what is taken of those that were written before they said it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FIELD = "objective"
BEFORE: Mapping[str, Any] = {
    "name": "classification",
    "selects": "accuracy",
    "metrics": {"loss": "min", "accuracy": "max", "macro_f1": "max", "matthews": "max"},
}
"""Of records without the field: all are of classifications."""
FORMATS_BEFORE: Mapping[str, str] = {"accuracy": "score"}
"""Formats of a table's column → what they are called now; sweep.json, and files of sweeps, may have the old name."""


def objective_facts(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """``name``, ``selects`` and ``metrics`` (name → ``max`` or ``min``) of the record's objective."""
    found = record.get(FIELD)
    return found if isinstance(found, Mapping) and "metrics" in found else BEFORE


def selected(record: Mapping[str, Any], split: str) -> float | None:
    """The record's selecting figure on ``split``, if it has one."""
    value = record.get("metrics", {}).get(split, {}).get(objective_facts(record)["selects"])
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
