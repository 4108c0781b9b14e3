"""Reports as data, with full precision: report.csv, groups.csv, report.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from math import isfinite
from typing import Any

from peftlab.report.groups import Group
from peftlab.report.report import Report
from peftlab.report.table import csv_text
from peftlab.version import __version__

FORMAT = 1
"""Version of report.json."""
_BOOKKEEPING = {"name", "seed", "output_dir", "force"}
"""Keys of a config that report.csv has no column for."""


def render_runs_csv(report: Report) -> str:
    """report.csv: a line a finished run; its group, seed, folder, values and config."""
    paths = list(dict.fromkeys(path for run in report.runs[:1] for path in run.values))
    keys = sorted({key for run in report.runs for key in run.config} - _BOOKKEEPING)
    lines = (
        [group.id, group.label, run.seed, run.key, run.folder, *map(run.values.get, paths), *map(run.config.get, keys)]
        for group in [*report.rows, *report.others]
        for run in group.runs
    )
    return csv_text(["group", "label", "seed", "key", "folder", *paths, *keys], lines)


def render_groups_csv(report: Report) -> str:
    """groups.csv: a line a row of the table."""
    facts = [report.details[group.id].facts for group in report.rows]
    names = list(dict.fromkeys(name for one in facts for name in one))
    return csv_text(names, ([one.get(name) for name in names] for one in facts))


def render_json(report: Report, absent: Sequence[str] = ()) -> str:
    """report.json: everything, for programs. Numbers that JSON does not have stand there as text."""
    content = {
        "format": FORMAT,
        "peftlab": __version__,
        "title": report.title,
        "metric": report.metric.value,
        "best": "highest" if report.highest else "lowest",
        "baseline": report.baseline.id if report.baseline else None,
        "columns": [column.plain() for column in report.columns],
        "groups": [_group(report, group) for group in report.rows],
        "measured_on": report.measured_on,
        "selection": report.selection,
        "notes": [*report.results.paragraphs, *report.notes],
        "figures_left_out": list(absent),
        "failures": [asdict(failure) for failure in report.failures],
        "left_out": [asdict(one) for one in report.left_out],
    }
    parts = [f" {json.dumps(name)}: {_json_lines(value)}" for name, value in content.items()]
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _group(report: Report, group: Group) -> dict[str, Any]:
    return {name: _number(value) for name, value in report.details[group.id].facts.items()} | {
        "chosen": dict(group.chosen),
        "missing": dict(group.missing),
        "runs": [
            {
                "seed": run.seed,
                "key": run.key,
                "folder": run.folder,
                "value": _number(run.values.get(report.metric.value)),
            }
            for run in group.runs
        ],
    }


def _number(value: Any) -> Any:
    """``value``, or its name as text where JSON has no such number."""
    return value if not isinstance(value, float) or isfinite(value) else str(value)


def _json_lines(value: Any) -> str:
    """JSON, with a line for each element of a list."""
    if isinstance(value, list | tuple) and value:
        return "[\n" + ",\n".join(f"  {_json(one)}" for one in value) + "\n ]"
    return _json(value)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
