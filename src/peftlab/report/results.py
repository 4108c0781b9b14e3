"""The tables of a report, and what is said of each row beside its cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peftlab.report.analysis import Analysis
from peftlab.report.columns import Column, cell_of, cell_of_texts
from peftlab.report.groups import Group
from peftlab.report.legends import shared_seeds
from peftlab.report.notes import settings
from peftlab.report.number_text import NOTHING, TELLING, WITHOUT_DEVIATION, fixed, single_text
from peftlab.report.records import Run
from peftlab.report.statistics import Comparison, summarise
from peftlab.report.table import Cell, Head, Mark, Row, Section, Table
from peftlab.report.words import runs_of_each

MOST_KEYS = 6
"""Config keys that get columns of their own; with more of them, a label says all."""


@dataclass(frozen=True, slots=True)
class RunLine:
    """One run of a row."""

    run: Run
    value: str
    """Its metric."""


@dataclass(frozen=True)
class Details:
    """What is said of a row beside its cells."""

    label: str
    facts: Mapping[str, Any]
    """Everything that is known of it as numbers and names, flat."""
    about: str
    """The keys that differ between rows, what was chosen, and which seeds are missing, in one line."""
    filters: tuple[str, ...]
    """``key=value`` by the short and by the whole key, in lower case."""
    runs: tuple[RunLine, ...]


def lead_keys(analysis: Analysis) -> Sequence[str]:
    """Config keys whose columns come first, in place of labels."""
    telling = analysis.grouped.telling
    return telling if len(telling) <= MOST_KEYS else ()


def results_table(analysis: Analysis, title: str, caption: str, legend: Sequence[str]) -> Table:
    """A row a group, in sections by the order of their first rows."""
    columns = [
        column.with_digits_of(group.values(column.value) for group in analysis.rows) for column in analysis.columns
    ]
    keys = lead_keys(analysis)
    leads = [Head(analysis.grouped.key_names[key]) for key in keys] or [Head("")]
    heads = [
        Head(column.head, column.format != "text", optional=column.value != analysis.metric.value) for column in columns
    ]
    sections: dict[str, list[Row]] = {}
    for group in analysis.rows:
        sections.setdefault(group.section, []).append(_row(analysis, group, keys, columns))
    return Table(
        (*leads, *heads, Head("n", number=True, implied=runs_of_each(analysis.rows) is not None)),
        tuple(Section(name, tuple(rows)) for name, rows in sections.items()),
        title, leads=len(leads), notes=tuple(legend), caption=caption,
    )  # fmt: skip


def _row(analysis: Analysis, group: Group, keys: Sequence[str], columns: Sequence[Column]) -> Row:
    lead = [Cell(group.keys.get(key, "")) for key in keys] or [Cell(group.label)]
    mark = analysis.marks.get(group.id, "")
    cells = [_cell(group, column, mark if column.value == analysis.metric.value else "") for column in columns]
    return Row((*lead, *cells, _count_of_runs(group)), group.id)


def _cell(group: Group, column: Column, mark: Mark) -> Cell:
    lost = len(group.diverged)
    told = f"diverged {lost} of {group.expected}" if lost else ""
    if not group.runs:
        return Cell(told or "not run")
    if column.format == "text":
        return cell_of_texts([run.values.get(column.value) for run in group.runs])
    # What is the same for all seeds, or a cost, says so only where it lacks more than the column n says.
    tells = column.format in TELLING
    complete = group.expected - lost if tells else len(group.runs)
    made = cell_of(
        group.values(column.value), column, complete=complete, expected=group.expected, unit=group.unit
    )  # fmt: skip
    return Cell(f"{made.text} ({told})" if told and tells else made.text, made.value, mark)


def _count_of_runs(group: Group) -> Cell:
    """``5 seeds``, or ``2/5 seeds`` where some are missing."""
    n, unit = len(group.runs), group.unit
    of = f"/{group.expected}" if n < group.expected else ""
    return Cell("1 seed" if n == 1 and not of else f"{n}{of} {unit}", float(n))


def comparison_table(analysis: Analysis, caption: str, legend: Sequence[str]) -> Table | None:
    """A row each that is compared to the baseline; None without one."""
    if analysis.baseline is None or not analysis.comparisons:
        return None
    labels = {group.id: group.label for group in analysis.rows}
    metric = analysis.metric
    rows = [
        Row((Cell(labels[name]), *_comparison_cells(test, metric)), name) for name, test in analysis.comparisons.items()
    ]
    alike = shared_seeds(analysis) is not None
    heads = (
        Head(""), Head("shared seeds", number=True, implied=alike), Head("difference", number=True),
        Head("95 % interval (t)", number=True), Head("95 % interval (bootstrap)", number=True, optional=True),
        Head("p", number=True), Head("p (corrected)", number=True),
    )  # fmt: skip
    title = f"Against {analysis.baseline.label}"
    return Table(heads, (Section("", tuple(rows)),), title, notes=tuple(legend), caption=caption)


def _comparison_cells(test: Comparison, metric: Column) -> list[Cell]:
    difference = NOTHING if test.difference is None else _difference_text(test.difference, metric)
    first = [Cell(str(test.n), float(test.n)), Cell(difference, test.difference)]
    if test.p is None or test.p_adjusted is None:
        return [*first, Cell(test.why_not), *[Cell(NOTHING)] * 3]
    intervals = [Cell(interval_text(ends, metric), ends and ends[0]) for ends in (test.interval, test.bootstrap)]
    return [*first, *intervals, *(Cell(p_text(p), p) for p in (test.p, test.p_adjusted))]


def interval_text(interval: tuple[float, float] | None, metric: Column) -> str:
    """``[low, high]``, of differences of ``metric``."""
    return NOTHING if interval is None else f"[{', '.join(_difference_text(end, metric) for end in interval)}]"


def _difference_text(value: float, metric: Column) -> str:
    """A difference of ``metric``, in the form of its column."""
    usual = metric.digits is None and metric.format not in TELLING
    return fixed(metric.scale * value, sign=True, digits=4 if usual else metric.places)


def p_text(p: float) -> str:
    """Two significant digits, and never 0."""
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}" if p < 0.01 else f"{p:.3f}"


def details_of(analysis: Analysis, group: Group) -> Details:
    """What is said of ``group`` beside its cells."""
    names, metric = analysis.grouped.key_names, analysis.metric
    about = [
        " ".join(f"{names[key]}={value}" for key, value in group.keys.items()),
        f"chosen on validation: {settings(group)}" if group.chosen else "",
        f"without a result: seed {', '.join(group.missing)}" if group.missing else "",
    ]
    filters = [f"{name}={value}" for key, value in group.keys.items() for name in dict.fromkeys((names[key], key))]
    return Details(
        group.label,
        _facts(analysis, group),
        "; ".join(filter(None, about)),
        tuple(filter_by.lower() for filter_by in filters),
        tuple(RunLine(run, single_text(run.number(metric.value), metric.format, metric.digits)) for run in group.runs),
    )


def _facts(analysis: Analysis, group: Group) -> dict[str, Any]:
    summary = analysis.summaries[group.id]
    facts: dict[str, Any] = {
        "group": group.id, "label": group.label, "section": group.section, "runs": len(group.runs),
        "expected_runs": group.expected, "n": summary.n, "mean": summary.mean, "std": summary.std,
        "binomial_standard_error": analysis.sampling_error(group), "mark": analysis.marks.get(group.id, ""),
    }  # fmt: skip
    for column in analysis.columns:
        if column.value != analysis.metric.value and column.format != "text":
            values = group.values(column.value)
            facts[f"mean {column.value}"] = sum(values) / len(values) if values else None
            if column.format not in WITHOUT_DEVIATION:
                facts[f"std {column.value}"] = summarise(values).std
    if analysis.baseline is not None:
        facts |= _comparison_facts(analysis.comparisons.get(group.id, Comparison(0)))
    return facts | dict(group.keys)


def _comparison_facts(test: Comparison) -> dict[str, Any]:
    low_t, high_t = test.interval or (None, None)
    low_b, high_b = test.bootstrap or (None, None)
    return {
        "shared_seeds": test.n, "difference": test.difference, "t": test.t, "p": test.p, "p_adjusted": test.p_adjusted,
        "t_low": low_t, "t_high": high_t, "bootstrap_low": low_b, "bootstrap_high": high_b, "why_no_p": test.why_not,
    }  # fmt: skip


def filter_example(analysis: Analysis) -> str:
    """A ``key=value`` that some row has, without spaces; empty if there is none."""
    for key, short in analysis.grouped.key_names.items():
        for group in analysis.rows:
            if key in group.keys and " " not in group.keys[key]:
                return f"{short}={group.keys[key]}"
    return ""
