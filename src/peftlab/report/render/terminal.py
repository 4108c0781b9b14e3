"""Tables on a terminal, no wider than it is."""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAVY
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, JustifyMethod, RenderableType
from rich.padding import Padding
from rich.segment import Segment
from rich.table import Table as RichTable
from rich.text import Text

from peftlab.report.table import Cell, Head, Mark, Row, Table, Tone
from peftlab.terminal import columns_of, filled, printable

BETWEEN = 3
"""Characters between two columns."""
WIDEST_NAME = 34
"""Characters of text that are reckoned with where it is asked whether another column has room."""
NARROWEST, LEAST = 12, 8
"""Characters that text keeps while another column can give way, and while words, but no figures, can be broken."""
SIGNS: dict[Mark, str] = {"best": "*", "tied": "=", "": "\N{NO-BREAK SPACE}"}
"""For output without bold and underlined letters; a plain space at the end of a cell would be cut off."""
_STYLES: dict[Mark, str] = {"best": "bold", "tied": "underline", "": ""}
_TONES: dict[Tone, str] = {"quiet": "dim", "warning": "yellow", "": ""}


_TRAILING = re.compile(r" +(?=\n)")


class PlainConsole(Console):
    """A console to which brackets are brackets, and that passes on no escape sequence but its own."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """As rich does; into a file or a pipe without the blanks that fill lines up to the width."""
        if self.is_terminal:
            super().print(*objects, **options)
            return
        with self.capture() as said:
            super().print(*objects, **options)
        self.file.write(_TRAILING.sub("", said.get()))
        self.file.flush()

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """The segments of ``renderable``, their text printable; colours are put around them later."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


def console() -> Console:
    """A console as wide as the terminal, also of one behind a pipe (``| head``); else of 110 columns (a log file)."""
    wide = PlainConsole()
    return wide if wide.is_terminal else PlainConsole(width=_width_behind_a_pipe() or 110)


def _width_behind_a_pipe() -> int | None:
    """Columns of the terminal on which the reader of a pipe most likely shows what it reads; None if there is none."""
    with suppress(OSError, ValueError):  # no stdout, or none with a descriptor
        if stat.S_ISFIFO(os.fstat(sys.stdout.fileno()).st_mode):
            return columns_of(sys.stderr)
    return None


def print_lines(out: Console, lines: Iterable[str], style: str = "") -> None:
    """Print each of ``lines`` as it is, broken between words where ``out`` is narrower; no path is cut."""
    for line in lines:
        whole = "\n".join(filled(line, out.width)) if cell_len(line) > out.width else line
        out.print(whole, highlight=False, markup=False, style=style, soft_wrap=True)


def print_hanging(out: Console, text: str, *, then: str, first: tuple[str, str] = ("", "")) -> None:
    """Print ``text`` as one line, on a terminal with ``then`` in front of what goes on below.

    Args:
        out: where to.
        text: of one line.
        then: blanks.
        first: what ``text`` begins with, and the style of that.
    """
    begin, style = first
    whole = begin + text
    if out.is_terminal and cell_len(whole) > out.width:
        whole = "\n".join(filled(whole, out.width, then=then))
    marked = begin.rstrip()  # a path may begin the line below
    out.print(Text.assemble((marked, style), whole.removeprefix(marked)), soft_wrap=True)


def print_facts(out: Console, facts: Iterable[tuple[str, str]]) -> None:
    """Print names and what is known of each, side by side."""
    made = RichTable(box=None, show_header=False, pad_edge=False)
    made.add_column(no_wrap=True)
    made.add_column(overflow="fold")
    for name, fact in facts:
        made.add_row(Text(name), Text(fact))
    out.print(made)


def print_table(
    out: Console, table: Table, *, most_rows: int | None = None, also: int = 0, elsewhere: str = ""
) -> None:
    """Print ``table`` without its notes. What has no room is broken into lines, never cut.

    Args:
        out: where to.
        table: what. Of its columns the optional ones are left out where there is not room for all.
        most_rows: with more rows, the others are counted only.
        also: so many more that are not in ``table``.
        elsewhere: what has the columns and rows that are left out.
    """
    columns = _Column.all_of(table, signs=out.color_system is None)
    shown = _with_room(columns, out.width)
    out.print(_drawn(table, shown, out.width, most_rows))
    rows = sum(1 for _ in table.rows)
    more = also + (0 if most_rows is None else max(0, rows - most_rows))
    if more:
        print_lines(out, [f"… and {more:,} more rows; all are in {elsewhere}."])
    if absent := [column.head.title for column in columns if column not in shown]:
        print_lines(out, [f"Too narrow here for: {', '.join(absent)}; {elsewhere} has them."])


def renderable(table: Table, width: int) -> Group:
    """``table`` with all its columns, for a display that changes."""
    return _drawn(table, _Column.all_of(table, signs=False), width, None)


def _drawn(table: Table, columns: Sequence[_Column], width: int, most_rows: int | None) -> Group:
    """A grid for the head and each section, in the same columns: a heading is as wide as all of them."""
    widths = _widths(columns, width)
    first = next((section for section in table.sections if not section.title), None)
    parts: list[RenderableType] = [Text(table.title, style="bold")] if table.title else []
    parts += [Text(), _grid(columns, widths, first.rows[:most_rows] if first else ())]
    rows = len(first.rows) if first else 0
    for section in table.sections:
        here = section.rows if most_rows is None else section.rows[: max(0, most_rows - rows)]
        if section is not first and here:
            heading = Text(section.title, style="bold italic")
            parts += [Padding(heading, (0, 0, 0, 2)), _grid(columns, widths, here, head=False)]
            rows += len(here)
    return Group(*parts, Text())


def _grid(columns: Sequence[_Column], widths: Sequence[int], rows: Sequence[Row], *, head: bool = True) -> Padding:
    made = RichTable(box=SIMPLE_HEAVY, show_header=head, show_edge=False)
    for column, width in zip(columns, widths, strict=True):
        justify: JustifyMethod = "right" if column.head.number else "left"
        made.add_column(Text(column.head.title), justify=justify, width=width, overflow="fold")
    for row in rows:
        made.add_row(*(column.text(row.cells[column.number]) for column in columns))
    return Padding(made, (0, 0, 0, 1))


@dataclass(frozen=True, eq=False)
class _Column:
    """What a column needs, in characters."""

    head: Head
    number: int
    signed: bool
    """Whether marks are signs behind the texts; all have room for one, so that the figures stay aligned."""
    whole: int
    """So that no cell is broken into lines."""
    figures: int
    """So that no figure is: words may be."""
    word: int
    """So that no word is."""

    @classmethod
    def all_of(cls, table: Table, *, signs: bool) -> list[_Column]:
        """The columns of ``table``."""
        return [cls._of(table, number, head, signs=signs) for number, head in enumerate(table.heads)]

    @classmethod
    def _of(cls, table: Table, number: int, head: Head, *, signs: bool) -> _Column:
        cells = [row.cells[number] for row in table.rows]
        signed = signs and any(cell.mark for cell in cells)
        beside = 2 * signed
        words = max(map(cell_len, " ".join([head.title, *(cell.text for cell in cells)]).split()), default=1)
        whole = beside + max((cell_len(cell.text) for cell in cells), default=0)
        if head.whole:
            return cls(head, number, signed, whole, whole, whole)
        if not head.number:
            return cls(head, number, signed, max(whole, cell_len(head.title), 1), min(whole, NARROWEST), words)
        title = head.title.split("\n") if "\n" in head.title else head.title.split()
        whole = max(whole, *map(cell_len, title), 1)
        figures = [beside + cell_len(cell.text) for cell in cells if cell.value is not None]
        return cls(head, number, signed, whole, max(words, *figures) if figures else whole, words)

    @property
    def is_firm(self) -> bool:
        """Whether no part of a cell may stand in another line."""
        return self.head.number or self.head.whole

    @property
    def room(self) -> int:
        """What it is reckoned with where it is asked whether another column has room."""
        if self.is_firm:
            return self.whole
        return min(self.whole, max(self.word, NARROWEST) if self.head.gives_way else WIDEST_NAME)

    @property
    def least(self) -> int:
        """So that neither figures nor words are broken, but a line of several words may be."""
        return min(self.figures, self.word)

    def text(self, cell: Cell) -> Text:
        """``cell`` as it is printed."""
        style = _TONES[cell.tone] or ("" if self.signed else _STYLES[cell.mark])
        return Text(f"{cell.text} {SIGNS[cell.mark]}" if self.signed else cell.text, style=style)


def _with_room(columns: Sequence[_Column], width: int) -> list[_Column]:
    """The columns that are printed: of the optional ones those that have room, in their order."""
    need = {column: BETWEEN + column.room for column in columns}
    room = width - 1 - sum(need[column] for column in columns if not column.head.optional)
    left_out = set()
    for column in columns:
        if column.head.optional and need[column] > room:
            left_out.add(column)
        elif column.head.optional:
            room -= need[column]
    return [column for column in columns if column not in left_out]


def _widths(columns: Sequence[_Column], width: int) -> list[int]:
    """A width for each column, in ``width`` characters together if that can be."""
    widths = [column.whole for column in columns]
    room = width - 1 - BETWEEN * len(columns)
    for floors in (
        [max(column.figures, min(column.word, WIDEST_NAME)) for column in columns],
        [column.figures if column.is_firm else min(column.word, LEAST) for column in columns],
        [column.least if column.is_firm else min(column.word, LEAST) for column in columns],
        [column.least if column.is_firm else 1 for column in columns],
        [1] * len(columns),
    ):
        while sum(widths) > room and any(width > floor for width, floor in zip(widths, floors, strict=True)):
            widest = max((width, n) for n, width in enumerate(widths) if width > floors[n])[1]
            widths[widest] -= 1
    return widths
