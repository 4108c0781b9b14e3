"""``peftlab table [NAME]``: compute a declared table again, beside what is published."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

from peftlab.report.render.markdown import escaped, markdown_table
from peftlab.report.render.terminal import console, print_facts, print_lines, print_table
from peftlab.report.table import Cell, Head, Row, Section, Table, Tone
from peftlab.tables.declared import Computed, compute, known_tables, read_table
from peftlab.terminal import say


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
        print_facts(console(), ((name, str(read_table(name)[0].get("title", ""))) for name in known_tables()))
        return 0
    table = compute(given.name)
    if given.json:
        print(json.dumps({"title": table.title, "rows": table.records, "failures": table.failures}, ensure_ascii=False))
    elif given.markdown:
        print(markdown(table))
    else:
        _print(table)
    for failure in table.failures:
        say(f"peftlab table: not as declared: {failure}", file=sys.stderr)
    return 1 if table.failures else 0


def as_table(found: Computed, *, sections: bool) -> Table:
    """What was computed; with ``sections``, the first column is a heading for the rows that share it."""
    first = int(sections)
    heads = tuple(Head(name, number=name in found.numbers, optional=name == "source") for name in found.columns[first:])
    rows = [(line[0], Row(tuple(map(_cell, found.columns[first:], line[first:])))) for line in found.rows]
    by_name = groupby(rows, key=lambda row: row[0] if sections else "")
    return Table(heads, tuple(Section(name, tuple(row for _, row in of)) for name, of in by_name), found.title)


_TONES: dict[str, Tone] = {"differs": "warning", "not": "quiet", "cannot": "quiet"}  # first word of the status


def _cell(column: str, text: str) -> Cell:
    return Cell(text, tone=_TONES.get(text.partition(" ")[0], "") if column == "status" else "")


def markdown(found: Computed) -> str:
    """The table as Markdown, without the seconds it took."""
    table = markdown_table(as_table(found, sections=False))
    return "\n".join([f"### {escaped(found.title)}", "", table, "", *(f"- {escaped(note)}" for note in found.notes)])


def _print(found: Computed) -> None:
    out = console()
    shown = found if found.brief is None else replace(found, rows=found.brief)
    print_table(out, as_table(shown, sections=True), elsewhere="--markdown")
    notes = [*found.notes, *([found.brief_note] if found.brief is not None else [])]
    print_lines(out, [*notes, "", found.summary])
