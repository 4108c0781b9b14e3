"""From folders to a report: records → runs → groups → statistics → tables and words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peftlab.errors import ConfigError, counted, listed, nearest
from peftlab.metric_names import TRAIN_LOSS, MetricName
from peftlab.objectives.base import figure_called
from peftlab.report.analysis import Analysis, analyse
from peftlab.report.columns import STANDARD, Column, columns_of
from peftlab.report.failures import failures_of
from peftlab.report.groups import Grouped, group_runs
from peftlab.report.groups_sweep import SweepFile, read_sweep_file
from peftlab.report.key_names import keep_where
from peftlab.report.legends import PLAIN, caption, comparison_caption, comparison_legend, legend, with_head
from peftlab.report.notes import measured_on, notes_of, selection_of
from peftlab.report.pairing import against, baseline_asked_for, require_a_pair, row_called
from peftlab.report.records import Run, first_objective, number_paths, read_runs
from peftlab.report.records_find import Found, LeftOut, find
from peftlab.report.report import Report
from peftlab.report.results import comparison_table, details_of, filter_example, results_table

FIGURE_VALUES = ("parameters.trainable", "timing.train_seconds", "memory.peak_mib")
RESULTS = ("metrics", "before", "parameters", "timing", "memory", "forgetting", "probe")
"""Parts of a record that are proposed where a place is not there."""


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


def build(request: Request) -> Report:
    """Make the report that ``request`` asks for.

    Raises:
        PeftlabError: if there is no record, or a key, metric or baseline that is not there.
    """
    found = find(request.folders)
    sweeps, unread = _sweep_files(found)
    objective = first_objective(found)
    path = request.metric or (sweeps[0].metric if sweeps else MetricName("test", objective["selects"]).in_record)
    columns = columns_of(request.columns, path, sweeps[0].columns if sweeps else [])
    metric = next(column for column in columns if column.value == path)
    curve = curve_of(path, objective)
    runs = read_runs(
        found, [*(column.value for column in columns), *STANDARD, *FIGURE_VALUES], (TRAIN_LOSS.in_history, curve)
    )
    if request.where:
        runs = keep_where(runs, request.where)
    _require_values(metric, runs, found, "--metric")
    for column in columns if request.columns is not None else []:
        _require_values(column, runs, found, "--columns")
    grouped = group_runs(runs, sweeps, by=request.by, filtered=bool(request.where))
    _require_rows(grouped)
    highest = request.best == "highest" if request.best else not metric.lower_is_better(objective["metrics"])
    analysis, notes = _compared(analyse(grouped, metric, columns, curve, highest=highest), request, sweeps)
    title = " + ".join(sweep.title for sweep in sweeps) or ", ".join(sorted({run.name for run in runs}))
    notes += notes_of(analysis, sweeps, request.where)
    return _told(analysis, title, sweeps, notes, [*unread, *found.left_out])


def _told(
    analysis: Analysis, title: str, sweeps: Sequence[SweepFile], notes: Sequence[str], left_out: Sequence[LeftOut]
) -> Report:
    """``analysis`` with its tables and words."""
    source = ", ".join(dict.fromkeys(sweep.source for sweep in sweeps if sweep.source))
    return Report(
        **vars(analysis),
        title=title,
        name=" ".join(sorted({run.name for run in analysis.runs})),
        results=results_table(analysis, title, caption(analysis), legend(analysis)),
        comparison=comparison_table(analysis, comparison_caption(analysis), comparison_legend(analysis)),
        with_head=with_head(analysis),
        legend_in_signs=tuple(legend(analysis, PLAIN)),
        details={group.id: details_of(analysis, group) for group in analysis.rows},
        filter_names=tuple(sorted(set(analysis.grouped.key_names.values()))),
        filter_example=filter_example(analysis),
        measured_on=tuple(measured_on(analysis)),
        selection=tuple(selection_of(analysis, sweeps)),
        source=(f"Source: {source}.",) if source else (),
        notes=tuple(notes),
        failures=tuple(failures_of([*analysis.rows, *analysis.others])),
        left_out=tuple(left_out),
    )


def _compared(analysis: Analysis, request: Request, sweeps: Sequence[SweepFile]) -> tuple[Analysis, list[str]]:
    """``analysis`` against the baseline that is asked for, or the sweep's; and a note if that has no run here."""
    if request.baseline is not None:
        baseline = baseline_asked_for(request.baseline, analysis.rows)
        tests = against(baseline, analysis.rows, analysis.metric.value, analysis.same)
        require_a_pair(request.baseline, baseline, analysis.rows, tests, analysis.same)
        return replace(analysis, baseline=baseline, comparisons=tests), []
    named = next((sweep.baseline for sweep in sweeps if sweep.baseline), None)
    if named is None or request.by:
        return analysis, []
    if (of_sweep := row_called(named, analysis.rows)) is None:  # not run yet, or --where took it away
        return analysis, [f"The sweep's baseline '{named}' has no run here; nothing is compared to it."]
    tests = against(of_sweep, analysis.rows, analysis.metric.value, analysis.same)
    return replace(analysis, baseline=of_sweep, comparisons=tests), []


def curve_of(metric: str, objective: Mapping[str, Any]) -> str:
    """The quantity of the history that goes with a metric: that of validation for one of the test.

    For a metric that the history has not, the figure that selects for the records' ``objective``.
    """
    name = MetricName.from_record(metric)
    figure = name.figure if name is not None else ""
    known = figure_called(figure)
    in_history = figure in objective["metrics"] and (known is None or known.each_epoch)
    return MetricName("validation", figure if in_history else objective["selects"]).in_history


def _sweep_files(found: Found) -> tuple[list[SweepFile], list[LeftOut]]:
    sweeps, unread = [], []
    for path in sorted(found.sweep_files):
        read = read_sweep_file(path)
        if isinstance(read, LeftOut):
            unread.append(LeftOut(read.path, f"{read.reason}; its runs are grouped by their configs"))
        else:
            sweeps.append(read)
    return sweeps, unread


def _require_rows(grouped: Grouped) -> None:
    if not any(group.row for group in grouped.groups):
        raise ConfigError("no cell with a run is a row of the table (row: false in the sweep).")


def _require_values(column: Column, runs: Sequence[Run], found: Found, option: str) -> None:
    finished = [run for run in runs if run.finished]
    if not finished:
        raise ConfigError(f"none of {counted(len(runs), 'run')} has finished; there is nothing to make a table of.")
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
    near = [path for path in paths if parent and path.rpartition(".")[0] == parent]
    near = near or [path for path in paths if path.partition(".")[0] in RESULTS]
    raise ConfigError(
        f"{option} {column.value}: no record has a value there.{nearest(column.value, paths)} "
        f"There are: {listed(near)}."
    )


def _kind(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f"the text '{str(value)[:60]}'"


def default_target(folders: Sequence[str]) -> Path:
    """Where a report goes if nothing else is said: ``report/`` in the first folder, or beside the record given."""
    first = Path(folders[0])
    return (first.parent if first.is_file() else first) / "report"
