"""What report.html knows beside what it shows, for its script."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

from peftlab.report.groups import Group
from peftlab.report.render.latex import SPECIAL, TABLE, about_the_runs, label_of, sentence
from peftlab.report.render.links import relative
from peftlab.report.render.paper import GAP, LETTERS, ROOM, TEXT, USUAL, WIDTHS
from peftlab.report.report import Report
from peftlab.report.results import RunLine
from peftlab.report.run_numbers import RunNumbers, in_percent, keys_of, quantiles_of, quantities_of, short_keys


def page_data(report: Report, target: Path) -> dict[str, Any]:
    """Everything, as JSON has it.

    Args:
        report: what the page shows.
        target: the folder that the page goes to; links are relative to it.
    """
    numbers = RunNumbers(report)
    rows = [_row(report, group, numbers, target) for group in report.rows]
    return {
        "title": sentence(report.title),
        "caption": report.results.caption,
        "label": label_of(report),
        "notes": " ".join(report.results.notes),
        "with_head": report.with_head,
        "about": about_the_runs(report),
        "leads": report.results.leads,
        "sections": any(section.title for section in report.results.sections),
        "heads": [[head.title, head.number] for head in report.results.heads],
        "columns": [[column.title, column.format, column.digits, column.deviation] for column in report.columns],
        "keys": short_keys(report),
        "signs": SPECIAL,
        "latex": TABLE,
        "paper": {"room": ROOM, "text": TEXT, "letters": LETTERS, "gap": GAP, "usual": USUAL, "widths": WIDTHS},
        "quantiles": quantiles_of(report),
        "other_texts": report.same.why_not,
        "quantities": [f"{name} (%)" if in_percent(report, name) else name for name in quantities_of(report)],
        "epochs": numbers.epochs,
        "rows": rows,
    }


def _row(report: Report, group: Group, numbers: RunNumbers, target: Path) -> dict[str, Any]:
    keys, computed = keys_of(group)
    details = report.details[group.id]
    return {
        "label": group.label, "section": group.section, "about": details.about, "keys": keys, "computed": computed,
        "missing": list(group.missing), "diverged": group.diverged,
        "runs": [_run(line, numbers, target) for line in details.runs],
    }  # fmt: skip


def _run(line: RunLine, numbers: RunNumbers, target: Path) -> list[Any]:
    """As ``page_table.js`` takes it apart."""
    run = line.run
    has = ("config.yaml" in run.files) + 2 * ("curves.png" in run.files)
    log = f"/.logs/{quote(run.key)}.txt" if run.logged else ""  # beside the run's folder
    return [
        run.seed, line.value, run.key, relative(run.folder, target), has, log,
        numbers.values(run), numbers.texts(run), numbers.curves(run),
    ]  # fmt: skip
