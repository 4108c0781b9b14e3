"""The tables of a report: rows of cells, as Markdown, CSV, JSON, and for the terminal."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peftlab.report.build import Report
from peftlab.report.groups import Group
from peftlab.report.legends import comparison_legend, legend
from peftlab.report.links import relative
from peftlab.report.markdown_text import escaped, table_line
from peftlab.report.notes import FailureNote, sampling_error
from peftlab.report.statistics import Comparison
from peftlab.report.tables_columns import cell_text, fixed, json_number, seeds_text
from peftlab.version import __version__


@dataclass(frozen=True)
class Row:
    """One printed row."""

    group: Group
    lead: list[str]
    """Its label, or the config values that tell it from the others."""
    cells: list[str]
    mark: str
    """``best``, ``tied`` or empty; for the column of the metric."""


MOST_KEYS = 6
"""Config keys that get columns of their own; with more of them, a label says all."""


def lead_keys(report: Report) -> list[str]:
    """Config keys whose columns come first, in place of labels."""
    return report.grouped.telling if len(report.grouped.telling) <= MOST_KEYS else []


def lead_head(report: Report) -> list[str]:
    """Titles of the first columns."""
    return [report.grouped.key_names[key] for key in lead_keys(report)] or [""]


def head(report: Report) -> list[str]:
    """Titles of the other columns."""
    return [*(column.title for column in report.columns), "n"]


def metric_place(report: Report) -> int:
    """Which of the columns the metric is."""
    return next(number for number, column in enumerate(report.columns) if column.value == report.metric.value)


def rows_of(report: Report, groups: Sequence[Group]) -> list[Row]:
    """The printed rows of ``groups``."""
    keys = lead_keys(report)
    return [
        Row(group, [group.keys.get(key, "") for key in keys] or [group.label], _cells(report, group),
            report.marks.get(group.id, ""))
        for group in groups
    ]  # fmt: skip


def _cells(report: Report, group: Group) -> list[str]:
    if group.id not in report.printed:
        texts = [cell_text(group, column) if group.runs else "not run" for column in report.columns]
        report.printed[group.id] = [*texts, seeds_text(group)]
    return report.printed[group.id]


def sections(report: Report) -> Iterator[tuple[str, list[Row]]]:
    """Heading and rows of each section, in the order of their first rows."""
    for section in dict.fromkeys(group.section for group in report.rows):
        yield section, rows_of(report, [group for group in report.rows if group.section == section])


COMPARISON_HEAD = ["shared seeds", "difference", "95 % interval (t)", "95 % interval (bootstrap)", "p", "p (Holm)"]


def comparison_rows(report: Report) -> list[tuple[str, list[str]]]:
    """Label and cells of each row that is compared to the baseline."""
    labels = {group.id: group.label for group in report.rows}
    return [(labels[name], _comparison_cells(found)) for name, found in report.comparisons.items()]


def _comparison_cells(found: Comparison) -> list[str]:
    difference = "–" if found.difference is None else fixed(found.difference, sign=True)
    if found.p is None or found.p_holm is None:
        return [str(found.n), difference, found.why_not, "–", "–", "–"]
    return [
        str(found.n), difference, interval_text(found.interval), interval_text(found.bootstrap),
        p_text(found.p), p_text(found.p_holm),
    ]  # fmt: skip


def interval_text(interval: tuple[float, float] | None) -> str:
    """``[low, high]``."""
    return "–" if interval is None else f"[{', '.join(fixed(end, sign=True) for end in interval)}]"


def p_text(p: float) -> str:
    """Two significant digits, and never 0."""
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}" if p < 0.01 else f"{p:.3f}"


def markdown(
    report: Report, figures: Sequence[str] = (), absent: Sequence[str] = (), target: Path | None = None
) -> str:
    """report.md: tables, notes and failures.

    Args:
        report: what to show.
        figures: names of the pictures beside the file.
        absent: why other pictures were not drawn.
        target: the folder that it goes to; links are relative to it. Without it, logs are named and not linked.
    """
    place = metric_place(report)
    lead = lead_head(report)
    lines = [
        table_line(map(escaped, [*lead, *head(report)])),
        table_line([*("---" for _ in lead), *("---:" for _ in head(report))]),
    ]
    for section, rows in sections(report):
        if section:
            lines.append(table_line([f"**{escaped(section)}**", *("" for _ in [*lead[1:], *head(report)])]))
        for row in rows:
            cells = [escaped(cell) for cell in row.cells]
            if row.mark:
                cells[place] = f"**{cells[place]}**" if row.mark == "best" else f"<ins>{cells[place]}</ins>"
            lines.append(table_line([*map(escaped, row.lead), *cells]))
    parts = [f"# {escaped(report.title)}", "\n".join(lines), escaped(legend(report))]
    if report.baseline is not None and report.comparisons:
        compared = [table_line(["", *COMPARISON_HEAD]), table_line(["---", *("---:" for _ in COMPARISON_HEAD)])]
        compared += [table_line([escaped(label), *map(escaped, cells)]) for label, cells in comparison_rows(report)]
        parts += [f"## Against {escaped(report.baseline.label)}", "\n".join(compared)]
        parts.append(escaped(comparison_legend(report)))
    parts += _listed("What it was measured on", [*report.measured_on, *report.selection, *_source(report)])
    parts += _listed("Notes", report.notes)
    if figures:
        parts += ["## Figures", *(f"![{name}]({name})" for name in figures)]
    parts += _listed("Figures left out", absent)
    failures = [f"- {escaped(f'{one.title}: {one.reason}')}{_log(one, target)}" for one in report.failures]
    parts += ["## Runs without a result", "\n".join(failures)] if failures else []
    parts += _listed("Left out", left_out_lines(report))
    return "\n\n".join(parts) + "\n"


def _log(failure: FailureNote, target: Path | None) -> str:
    if failure.log is None:
        return ""
    return f" (log: {escaped(failure.log)})" if target is None else f" ([log]({relative(failure.log, target)}))"


def _source(report: Report) -> list[str]:
    return [f"Source: {report.source}."] if report.source else []


def left_out_lines(report: Report) -> list[str]:
    """One line for each file that could not be used."""
    return [f"{one.path} {one.reason}." for one in report.left_out]


def _listed(title: str, lines: Sequence[str]) -> list[str]:
    return [f"## {title}", "\n".join(f"- {escaped(line)}" for line in lines)] if lines else []


def runs_csv(report: Report) -> str:
    """report.csv: a line a finished run, with full precision; its group, seed, folder, config and values."""
    columns = _value_paths(report)
    keys = sorted({key for run in report.runs for key in run.config} - {"name", "seed", "output_dir", "force"})
    head_line = ["group", "label", "seed", "key", "folder", *columns, *keys]
    lines = (
        [group.id, group.label, run.seed, run.key, run.folder,
         *(run.values.get(path) for path in columns), *(run.config.get(key) for key in keys)]
        for group in [*report.rows, *report.others] for run in group.runs
    )  # fmt: skip
    return _csv(head_line, lines)


def _value_paths(report: Report) -> list[str]:
    return list(dict.fromkeys(path for run in report.runs[:1] for path in run.values))


def groups_csv(report: Report) -> str:
    """groups.csv: a line a row of the table, with full precision."""
    facts = [group_facts(report, group) for group in report.rows]
    names = list(dict.fromkeys(name for one in facts for name in one))
    return _csv(names, ([one.get(name) for name in names] for one in facts))


def group_facts(report: Report, group: Group) -> dict[str, Any]:
    """Everything that is known of one row, flat."""
    summary = report.summaries[group.id]
    facts: dict[str, Any] = {
        "group": group.id, "label": group.label, "section": group.section, "runs": len(group.runs),
        "expected_runs": group.expected, "n": summary.n, "mean": summary.mean, "std": summary.std,
        "binomial_standard_error": sampling_error(report, group), "mark": report.marks.get(group.id, ""),
    }  # fmt: skip
    for column in report.columns:
        if column.value != report.metric.value and column.format != "text":
            values = group.values(column.value)
            facts[f"mean {column.value}"] = sum(values) / len(values) if values else None
    if report.baseline is not None:
        found = report.comparisons.get(group.id, Comparison(0))
        low_t, high_t = found.interval or (None, None)
        low_b, high_b = found.bootstrap or (None, None)
        facts |= {
            "shared_seeds": found.n, "difference": found.difference, "t": found.t, "p": found.p,
            "p_holm": found.p_holm, "t_low": low_t, "t_high": high_t, "bootstrap_low": low_b,
            "bootstrap_high": high_b, "why_no_p": found.why_not,
        }  # fmt: skip
    return facts | group.keys


def _csv(head_line: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head_line)
    writer.writerows(lines)
    return text.getvalue()


def json_text(report: Report, absent: Sequence[str] = ()) -> str:
    """report.json: everything, for programs. Numbers that JSON does not have stand there as text."""
    content = {
        "format": 1,
        "peftlab": __version__,
        "title": report.title,
        "metric": report.metric.value,
        "best": "highest" if report.highest else "lowest",
        "baseline": report.baseline.id if report.baseline else None,
        "columns": [asdict(column) for column in report.columns],
        "groups": [
            {name: json_number(value) for name, value in group_facts(report, group).items()}
            | {
                "chosen": dict(group.chosen),
                "missing": group.missing,
                "runs": [
                    {"seed": run.seed, "key": run.key, "folder": run.folder, "value": json_number(
                        run.values.get(report.metric.value))}
                    for run in group.runs
                ],
            }
            for group in report.rows
        ],
        "measured_on": report.measured_on,
        "selection": report.selection,
        "notes": [legend(report), *report.notes],
        "figures_left_out": list(absent),
        "failures": [asdict(failure) for failure in report.failures],
        "left_out": [asdict(one) for one in report.left_out],
    }  # fmt: skip
    parts = [f" {json.dumps(name)}: {_json_lines(value)}" for name, value in content.items()]
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _json_lines(value: Any) -> str:
    """JSON, with a line for each element of a list."""
    if isinstance(value, list) and value:
        return "[\n" + ",\n".join(f"  {_json_lines_of_one(one)}" for one in value) + "\n ]"
    return _json_lines_of_one(value)


def _json_lines_of_one(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
