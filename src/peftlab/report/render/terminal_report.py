"""A report on a terminal."""

from __future__ import annotations

from rich.console import Console

from peftlab.report.render.terminal import console, print_lines, print_table
from peftlab.report.report import Report

MOST_ROWS = 60


def print_report(report: Report, out: Console | None = None) -> None:
    """Print the tables, notes and failures of ``report``."""
    out = out or console()
    print_table(out, report.results, most_rows=MOST_ROWS, elsewhere="report.md")
    if report.comparison is not None:
        print_table(out, report.comparison, most_rows=MOST_ROWS, elsewhere="report.md")
    legends = report.legend_in_signs if out.color_system is None else report.results.notes
    print_lines(out, [report.results.caption, *legends, *report.measured_on, *report.selection, *report.notes])
    for failure in report.failures[:MOST_ROWS]:
        log = f" (log: {failure.log})" if failure.log else ""
        print_lines(out, [f"no result: {failure.title}: {failure.reason}{log}"], style="yellow")
