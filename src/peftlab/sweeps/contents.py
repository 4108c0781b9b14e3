"""sweep.json: which runs of a folder are which cells of its table, for ``peftlab report``. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftlab.files import write_atomically
from peftlab.sweeps.choice import Choice
from peftlab.sweeps.declaration import Cell
from peftlab.sweeps.jobs import Outcome
from peftlab.sweeps.plan import DeclaredPlan, Variant

FORMAT = 1
"""Version of sweep.json."""


def write_contents(plan: DeclaredPlan, outcome: Outcome, file: Path) -> None:
    """Write ``<output_dir>/<name>/sweep.json``, atomically."""
    text = json.dumps(contents(plan, outcome, file), indent=2, ensure_ascii=False)
    write_atomically(plan.folder / "sweep.json", text + "\n")


def contents(plan: DeclaredPlan, outcome: Outcome, file: Path) -> dict[str, Any]:
    """What the runs of the folder are called, as plain containers.

    Args:
        plan: the sweep as it was called.
        outcome: what became of its jobs so far.
        file: the sweep's file.
    """
    sweep = plan.sweep
    choices = plan.choices(outcome)
    records = plan.records(outcome)
    return {
        "format": FORMAT,
        "file": str(file),
        "settings": plan.settings,
        "title": sweep.title,
        "source": sweep.source,
        "selection": sweep.selection,
        "notes": sweep.notes,
        "metric": sweep.metric,
        "baseline": sweep.baseline,
        "seeds": list(sweep.seeds),
        "columns": [
            {"title": column.title, "value": column.value, "format": column.format} for column in sweep.columns
        ],
        "cells": [_cell(plan, cell, outcome, records, choices.get(cell.id)) for cell in sweep.cells],
    }


def _cell(
    plan: DeclaredPlan,
    cell: Cell,
    outcome: Outcome,
    records: Mapping[tuple[str, int], Mapping[str, Any]],
    choice: Choice | None,
) -> dict[str, Any]:
    failed: dict[str, str] = {}
    for seed in plan.sweep.seeds:
        variant = plan.variant(cell, seed, outcome) or Variant(cell, seed)
        if (failure := outcome.failures.get(variant.id)) is not None:
            failed[str(seed)] = failure.reason
    if choice is not None and choice.settled and choice.chosen is None:
        failed = dict.fromkeys(map(str, plan.sweep.seeds), "every value that was tried has failed or diverged")
    return {
        "id": cell.id,
        "label": cell.title,
        "row": cell.row,
        "curve": cell.curve,
        "group": cell.group,
        "runs": {str(seed): records[cell.id, seed]["key"] for seed in plan.sweep.seeds if (cell.id, seed) in records},
        "failed": failed,
        "chosen": {} if choice is None or choice.chosen is None else dict(choice.chosen.parameters),
        "tried": [] if choice is None else _tried(choice),
    }


def _tried(choice: Choice) -> list[dict[str, Any]]:
    """What was tried with the first seed: state, run and the value that the choice was made by."""
    return [
        {
            "parameters": dict(one.parameters),
            "state": "chosen" if one is choice.chosen else one.state,
            "run": None if one.record is None else one.record["key"],
            "by": choice.by,
            "value": one.value,
        }
        for one in choice.tried
        if one.parameters
    ]
