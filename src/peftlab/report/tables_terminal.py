"""The tables of a report on a terminal, no wider than it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rich.box import SIMPLE_HEAVY
from rich.console import Console
from rich.table import Table
from rich.text import Text

from peftlab.report.build import Report
from peftlab.report.legends import PLAIN, TYPESET, MarkWords, legend
from peftlab.report.result import console
from peftlab.report.tables import COMPARISON_HEAD, Row, comparison_rows, head, lead_head, metric_place, sections

MOST_ROWS = 60
NO_MARK = "\N{NO-BREAK SPACE}"
"""In the place of one; a plain space at the end of a cell would be cut off."""
WIDEST = 34
"""Characters of a label's column."""


def print_report(report: Report) -> None:
    """Print the tables, notes and failures."""
    out = console()
    words = TYPESET if out.color_system else PLAIN  # a pipe, a file, TERM=dumb: no bold there
    _print_results(report, out, words)
    if report.baseline is not None and report.comparisons:
        _print_comparison(report, out)
    for line in [legend(report, words), *report.measured_on, *report.selection, *report.notes]:
        out.print(line, highlight=False, markup=False)
    for failure in report.failures[:MOST_ROWS]:
        log = f" (log: {failure.log})" if failure.log else ""
        out.print(f"no result: {failure.title}: {failure.reason}{log}", highlight=False, markup=False, style="yellow")


def _print_results(report: Report, out: Console, words: MarkWords) -> None:
    place = metric_place(report)
    parts = list(sections(report))
    if words is PLAIN:
        parts = [(section, [_signed(row, place) for row in of_section]) for section, of_section in parts]
    rows = [row for _, of_section in parts for row in of_section]
    columns = _fitting(report, rows, out.width)
    table = _table(report.title)
    for title, width in zip(lead_head(report), _lead_widths(report, rows), strict=True):
        table.add_column(Text(title), overflow="fold", width=width)
    for number in columns:
        table.add_column(Text(head(report)[number]), justify="right", overflow="fold", no_wrap=False)
    printed = 0
    for section, of_section in parts:
        if section and printed < MOST_ROWS:
            table.add_row(Text(section, style="bold italic"))
        for row in of_section[: MOST_ROWS - printed]:
            cells = [Text(row.cells[number]) for number in columns]
            if words is TYPESET:
                cells[columns.index(place)].stylize({"best": "bold", "tied": "underline"}.get(row.mark, ""))
            table.add_row(*map(Text, row.lead), *cells)
            printed += 1
    out.print(table)
    if printed < len(rows):
        out.print(f"… and {len(rows) - printed} more rows; all are in report.md and groups.csv.", highlight=False)
    if absent := [title for number, title in enumerate(head(report)) if number not in columns]:
        out.print(f"Too narrow here for: {', '.join(absent)}; report.md has them.", highlight=False)


def _signed(row: Row, place: int) -> Row:
    """``row`` with its mark as a sign behind the metric; all have room for one, so that the figures stay aligned."""
    sign = {"best": PLAIN.best, "tied": PLAIN.tied}.get(row.mark, NO_MARK)
    cells = [f"{cell} {sign}" if number == place else cell for number, cell in enumerate(row.cells)]
    return replace(row, cells=cells)


def _lead_widths(report: Report, rows: Sequence[Row]) -> list[int]:
    columns = zip(lead_head(report), *(row.lead for row in rows), strict=True)
    return [min(WIDEST, max(6, *map(len, column))) for column in columns]


def _fitting(report: Report, rows: Sequence[Row], width: int) -> list[int]:
    """Numbers of the columns that fit: the metric and n always, the others in their order while there is room."""
    titles = head(report)
    need = [
        3 + max(max(map(len, title.split()), default=0), *(len(row.cells[number]) for row in rows))
        for number, title in enumerate(titles)
    ]
    room = width - 2 - sum(lead + 3 for lead in _lead_widths(report, rows))
    always = {metric_place(report), len(titles) - 1}
    room -= sum(need[number] for number in always)
    shown = set(always)
    for number, wanted in enumerate(need):
        if number not in always and wanted <= room:
            shown.add(number)
            room -= wanted
    return sorted(shown)


def _print_comparison(report: Report, out: Console) -> None:
    assert report.baseline is not None
    compared = _table(f"Against {report.baseline.label}")
    compared.add_column("", overflow="fold")
    shown = [0, 1, 2, 4, 5]
    for number in shown:
        compared.add_column(COMPARISON_HEAD[number], justify="right", overflow="fold", min_width=8)
    rows = comparison_rows(report)
    for label, texts in rows[:MOST_ROWS]:
        compared.add_row(Text(label), *(Text(texts[number]) for number in shown))
    out.print(compared)
    out.print("Not here, but in report.md: the bootstrap interval.", highlight=False)
    if len(rows) > MOST_ROWS:
        out.print(f"… and {len(rows) - MOST_ROWS} more rows; all are in report.md and groups.csv.", highlight=False)


def _table(title: str) -> Table:
    return Table(box=SIMPLE_HEAVY, title=Text(title, style="bold"), title_justify="left")
