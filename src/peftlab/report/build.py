"""From folders to a report: read, group, summarise, compare, and say what a reader must know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftlab.errors import ConfigError, listed, nearest
from peftlab.objectives.base import figure_called
from peftlab.report.groups import Group, Grouped, group_runs, keep_where
from peftlab.report.groups_sweep import SweepFile, read_sweep_file
from peftlab.report.marks import Marks, marks_of
from peftlab.report.notes import FailureNote, add_notes
from peftlab.report.records import Found, LeftOut, Run, find, first_objective, number_paths, read_runs
from peftlab.report.same_rows import SameRows, same_rows
from peftlab.report.statistics import Comparison, Summary, compare, corrected, summarise
from peftlab.report.tables_columns import STANDARD, Column, columns_of

FIGURE_VALUES = ("parameters.trainable", "timing.train_seconds", "memory.peak_mib")


@dataclass(frozen=True)
class Request:
    """What is asked of a report."""

    folders: tuple[str, ...]
    metric: str | None = None
    columns: str | None = None
    by: tuple[str, ...] = ()
    where: tuple[str, ...] = ()
    baseline: str | None = None
    best: str | None = None
    """``highest`` or ``lowest``; None: as the records say of the metric."""


@dataclass
class Report:
    """Everything that the outputs show."""

    title: str
    metric: Column
    curve: str
    """The quantity of the history that goes with the metric."""
    highest: bool
    """Whether the highest value of the metric is the best."""
    columns: list[Column]
    rows: list[Group]
    others: list[Group]
    """Cells of a sweep that are no rows."""
    grouped: Grouped
    summaries: dict[str, Summary]
    """Id of a row → its metric."""
    same: SameRows
    """Which runs were measured on the same texts."""
    found: Marks
    """The best rows, and what could not be compared with them."""
    baseline: Group | None = None
    comparisons: dict[str, Comparison] = field(default_factory=dict)
    """Id of a row → how it compares to the baseline."""
    source: str = ""
    selection: list[str] = field(default_factory=list)
    measured_on: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    failures: list[FailureNote] = field(default_factory=list)
    printed: dict[str, list[str]] = field(default_factory=dict)
    """Id of a row → its cells as text, made once for all outputs."""

    @property
    def marks(self) -> dict[str, str]:
        """Id of a row → ``best``, or ``tied``: not significantly worse than the best."""
        return self.found.of

    @property
    def runs(self) -> list[Run]:
        """All finished runs of the rows and of the other cells."""
        return [run for group in [*self.rows, *self.others] for run in group.runs]


def build(request: Request) -> Report:
    """Make the report that ``request`` asks for.

    Raises:
        PeftlabError: if there is no record, or a key, metric or baseline that is not there.
    """
    found = find(request.folders)
    sweeps = _sweep_files(found)
    objective = first_objective(found)
    metric_path = request.metric or (sweeps[0].metric if sweeps else f"metrics.test.{objective['selects']}")
    columns = columns_of(request.columns, metric_path, sweeps[0].columns if sweeps else [])
    metric = next(column for column in columns if column.value == metric_path)
    paths = [*(column.value for column in columns), *STANDARD, *FIGURE_VALUES]
    curve = curve_of(metric_path, objective)
    curves = ("train/loss", curve)
    runs = read_runs(found, paths, curves)
    if request.where:
        runs = keep_where(runs, request.where)
    _require_values(metric, runs, found, "--metric")
    for column in columns if request.columns is not None else []:
        _require_values(column, runs, found, "--columns")
    grouped = group_runs(runs, sweeps, by=request.by, filtered=bool(request.where))
    rows = [group for group in grouped.groups if group.row]
    if not rows:
        raise ConfigError("no cell with a run is a row of the table (row: false in the sweep).")
    _require_one_id_each(rows)
    highest = request.best == "highest" if request.best else not metric.lower_is_better(objective["metrics"])
    same = same_rows(grouped.groups, metric.value)
    summaries = {group.id: summarise(group.values(metric.value)) for group in rows}
    report = Report(
        curve=curve,
        title=" + ".join(sweep.title for sweep in sweeps) or ", ".join(sorted({run.name for run in runs})),
        metric=metric, highest=highest, columns=columns, rows=rows,
        others=[group for group in grouped.groups if not group.row], grouped=grouped, summaries=summaries,
        same=same, found=marks_of(rows, metric.value, summaries, same, highest=highest),
        source=", ".join(dict.fromkeys(sweep.source for sweep in sweeps if sweep.source)), left_out=found.left_out,
    )  # fmt: skip
    named = request.baseline or next((sweep.baseline for sweep in sweeps if sweep.baseline), None)
    if named is not None and (request.baseline or not request.by):
        _compare(report, named, optional=request.baseline is None)
    add_notes(report, sweeps, request.where)
    return report


def curve_of(metric: str, objective: Mapping[str, Any]) -> str:
    """The quantity of the history that goes with a metric: ``validation/loss`` for ``metrics.test.loss``.

    For a metric that the history has not, the figure that selects for the records' ``objective``.
    """
    last = metric.rpartition(".")[2]
    known = figure_called(last)
    in_history = metric.startswith("metrics.") and last in objective["metrics"] and (known is None or known.each_epoch)
    return f"validation/{last if in_history else objective['selects']}"


def _sweep_files(found: Found) -> list[SweepFile]:
    sweeps = []
    for path in sorted(found.sweep_files):
        read = read_sweep_file(path)
        if isinstance(read, LeftOut):
            found.left_out.append(LeftOut(read.path, f"{read.reason}; its runs are grouped by their configs"))
        else:
            sweeps.append(read)
    return sweeps


def _require_values(column: Column, runs: Sequence[Run], found: Found, option: str) -> None:
    finished = [run for run in runs if run.finished]
    if not finished:
        raise ConfigError(f"none of the {len(runs)} runs has finished; there is nothing to make a table of.")
    values = [value for run in finished if (value := run.values.get(column.value)) is not None]
    if any(run.number(column.value) is not None for run in finished):
        return
    if values and option == "--metric":
        raise ConfigError(
            f"--metric {column.value}: the records have no number there, but {_kind(values[0])}. Only numbers have a "
            f"mean; as a column beside the metric it can be shown: --columns {column.value}."
        )
    if values and column.format == "text":
        return
    paths = number_paths(found)
    parent = column.value.rpartition(".")[0]
    results = ("metrics.", "parameters.", "timing.", "memory.", "forgetting.")
    near = [path for path in paths if parent and path.rpartition(".")[0] == parent]
    near = near or [path for path in paths if path.startswith(results)]
    raise ConfigError(
        f"{option} {column.value}: no record has a value there.{nearest(column.value, paths)} "
        f"There are: {listed(near)}."
    )


def _kind(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f"the text '{str(value)[:60]}'"


def _require_one_id_each(rows: Sequence[Group]) -> None:
    """Cells of several sweeps may share an id; then their labels, which name the sweep, take its place."""
    ids = [group.id for group in rows]
    for number, group in enumerate(rows):
        if ids.count(group.id) > 1:
            group.id = f"{group.label} [{number}]" if sum(g.label == group.label for g in rows) > 1 else group.label


def _compare(report: Report, named: str, *, optional: bool) -> None:
    """Fill in how each row compares to the baseline ``named``.

    Raises:
        ConfigError: if there is no such row, or no row shares a seed with it.
    """
    exact = [group for group in report.rows if named in (group.id, group.label)]
    baseline = next(iter(exact or [g for g in report.rows if named.lower() in (g.id.lower(), g.label.lower())]), None)
    if baseline is None:
        if optional:  # the sweep's baseline has no run yet, or --where took it away
            report.notes.append(f"The sweep's baseline '{named}' has no run here; nothing is compared to it.")
            return
        names = [name for group in report.rows for name in (group.label, group.id)]
        raise ConfigError(
            f"--baseline {named}: no row is called so.{nearest(named, names)} "
            f"Rows: {listed({group.label for group in report.rows})}."
        )
    path = report.metric.value
    rest = [group for group in report.rows if group is not baseline and group.runs]
    values = baseline.by_seed(path)
    tests = corrected(
        [
            compare(group.by_seed(path), values)
            if report.same.pairable(group, baseline)
            else Comparison(0, why_not=report.same.why_not)
            for group in rest
        ]
    )
    if rest and not optional and all(test.why_not == report.same.why_not for test in tests):
        raise ConfigError(
            f"--baseline {named}: no row can be compared with it: all others are {report.same.why_not}. Choose a "
            "baseline on the same texts (What it was measured on, in the report without --baseline, names them)."
        )
    if rest and not optional and all(test.n == 0 for test in tests):
        seeds = sorted({run.seed for run in baseline.runs})
        others = sorted({run.seed for group in rest for run in group.runs})
        raise ConfigError(
            f"--baseline {named}: no row can be paired with it: {tests[0].why_not}. "
            f"Its seeds are {seeds}; those of the other rows are {others}. A paired test needs one run a seed in both."
        )
    report.baseline = baseline
    report.comparisons = {group.id: test for group, test in zip(rest, tests, strict=True)}


def default_target(folders: Sequence[str]) -> Path:
    """Where a report goes if nothing else is said: ``report/`` in the first folder, or beside the record given."""
    first = Path(folders[0])
    return (first.parent if first.is_file() else first) / "report"
