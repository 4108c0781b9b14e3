"""sweep.json: which runs of a folder are which cells of its table, for ``peftlab report``. Imports no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftlab.files import write_atomically
from peftlab.sweeps.choice import Choice, Tried
from peftlab.sweeps.declaration import Arm
from peftlab.sweeps.jobs import Failure, Outcome
from peftlab.sweeps.plan import DeclaredPlan, Variant

FORMAT = 1
"""Version of sweep.json."""


def write_manifest(plan: DeclaredPlan, outcome: Outcome, file: Path) -> None:
    """Write ``<output_dir>/<name>/sweep.json``, atomically."""
    text = json.dumps(manifest(plan, outcome, file), indent=2, ensure_ascii=False)
    write_atomically(plan.folder / "sweep.json", text + "\n")


def manifest(plan: DeclaredPlan, outcome: Outcome, file: Path) -> dict[str, Any]:
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
        "columns": [column.plain() for column in sweep.columns],
        "cells": [_arm(plan, arm, outcome, records, choices.get(arm.id)) for arm in sweep.cells],
    }


def _arm(
    plan: DeclaredPlan,
    arm: Arm,
    outcome: Outcome,
    records: Mapping[tuple[str, int], Mapping[str, Any]],
    choice: Choice | None,
) -> dict[str, Any]:
    failed: dict[str, str] = {}
    logs: dict[str, str] = {}
    for seed in plan.sweep.seeds:
        variant = plan.variant(arm, seed, outcome) or Variant(arm, seed)
        if (failure := outcome.failures.get(variant.id)) is not None:
            failed[str(seed)] = _reason(failure)
            if failure.log is not None:
                logs[str(seed)] = os.path.relpath(failure.log, plan.folder)
        elif (where := outcome.diverged.get(variant.id)) is not None:
            failed[str(seed)] = where
    if choice is not None and choice.settled and choice.chosen is None:
        failed = dict.fromkeys(map(str, plan.sweep.seeds), "every value that was tried has failed or diverged")
    return {
        "id": arm.id,
        "label": arm.title,
        "row": arm.row,
        "curve": arm.curve,
        "group": arm.group,
        "runs": {str(seed): records[arm.id, seed]["key"] for seed in plan.sweep.seeds if (arm.id, seed) in records},
        "failed": failed,
        "logs": logs,
        "chosen": {} if choice is None or choice.chosen is None else dict(choice.chosen.parameters),
        "tried": [] if choice is None else _tried(plan, arm, outcome, choice),
    }


def _reason(failure: Failure) -> str:
    """Why, with the last line of the job's log, which says it better than an exit status."""
    last = failure.tail.strip().splitlines()[-1:]
    return ": ".join([failure.reason, *(line.strip() for line in last)])


def _tried(plan: DeclaredPlan, arm: Arm, outcome: Outcome, choice: Choice) -> list[dict[str, Any]]:
    """What was tried with the first seed: state, run and the value that the choice was made by."""
    return [
        {
            "parameters": dict(one.parameters),
            "state": "chosen" if one is choice.chosen else one.state,
            "run": one.record["key"] if one.record is not None else _key(plan, arm, one, outcome),
            "by": choice.by,
            "value": one.value,
        }
        for one in choice.tried
        if one.parameters
    ]


def _key(plan: DeclaredPlan, arm: Arm, tried: Tried, outcome: Outcome) -> str | None:
    """Key of a run that was stopped early or failed: its folder may be there. None where it did not begin."""
    if tried.state not in ("pruned", "failed", "diverged"):
        return None
    variant = Variant(arm, plan.sweep.seeds[0], tuple(tried.parameters.items()))
    return plan.key(variant, outcome)
