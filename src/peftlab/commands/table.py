"""``peftlab table [NAME]``: compute a declared table again, beside what is published."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import groupby

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from peftlab.report.render.terminal import console
from peftlab.tables.declared import Computed, compute, known_tables, read_table


def main(arguments: Sequence[str]) -> int:
    """List the tables, or compute and print one.

    Returns:
        0; 1 if a row did not come out as the table declares.
    """
    parser = argparse.ArgumentParser(
        "peftlab table",
        description="Compute a declared table (sweeps/tables/*.yaml) again. Exit status 1 if a row is not as declared.",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="a table, or the path of a YAML file; none: list them")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="print Markdown")
    form.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args(list(arguments))
    if given.name is None:
        known = known_tables()
        for name in known:
            print(f"{name:<{max(map(len, known)) + 2}}{read_table(name)[0].get('title', '')}")
        return 0
    table = compute(given.name)
    if given.json:
        print(json.dumps({"title": table.title, "rows": table.records, "failures": table.failures}, ensure_ascii=False))
    elif given.markdown:
        print(markdown(table))
    else:
        _print(table)
    for failure in table.failures:
        print(f"peftlab table: not as declared: {failure}", file=sys.stderr)
    return 1 if table.failures else 0


def markdown(table: Computed) -> str:
    """The table as Markdown, without the seconds it took."""
    lines = [
        table.columns,
        ["--:" if column in table.numbers else "---" for column in table.columns],
        *([cell.replace("|", "\\|") for cell in row] for row in table.rows),
    ]
    body = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([f"### {table.title}", "", *body, "", *(f"- {note}" for note in table.notes)])


def _print(table: Computed) -> None:
    """One small table a group, all with the same column widths."""
    out = console()
    out.print(f"[bold]{escape(table.title)}[/bold]")
    columns, rows = table.columns[1:], [row[1:] for row in table.rows]
    widths = [max(map(len, [name, *cells])) for name, cells in zip(columns, zip(*rows, strict=True), strict=True)]
    widest = widths.index(max(widths))  # this column gives way
    widths[widest] = max(16, min(widths[widest], out.width - sum(widths) + widths[widest] - 2 * len(widths)))
    out.print(_grid(columns, widths, table.numbers, []))
    for group, members in groupby(table.rows, key=lambda row: row[0]):
        out.print(f"\n[bold]{escape(group)}[/bold]", highlight=False)
        out.print(_grid(columns, widths, table.numbers, [row[1:] for row in members]), highlight=False)
    out.print()
    for line in [*table.notes, "", table.summary]:
        out.print(line, highlight=False, markup=False)


_STYLES = {"differs": "yellow", "not": "dim", "cannot": "dim"}  # first word of the status → colour


def _grid(columns: list[str], widths: list[int], numbers: set[str], rows: list[list[str]]) -> Table:
    """Rows in columns of ``widths``; without rows the columns' names."""
    grid = Table(box=None, show_header=not rows, padding=(0, 2, 0, 0), header_style="dim")
    for name, width in zip(columns, widths, strict=True):
        grid.add_column(name, justify="right" if name in numbers else "left", width=width, overflow="fold")
    for row in rows:
        grid.add_row(
            *(
                Text(cell, style=_STYLES.get(cell.partition(" ")[0], "") if name == "status" else "")
                for name, cell in zip(columns, row, strict=True)
            )
        )
    return grid
