"""Tables on a terminal, no wider than it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAVY
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from peftlab.report.table import Cell, Head, Mark, Table, Tone

BETWEEN = 3
"""Characters between two columns."""
WIDEST_NAME = 34
"""Characters of text that are reckoned with where it is asked whether another column has room."""
NARROWEST = 12
"""Characters that text keeps while another column can give way."""
SIGNS: dict[Mark, str] = {"best": "*", "tied": "=", "": "\N{NO-BREAK SPACE}"}
"""For output without bold and underlined letters; a plain space at the end of a cell would be cut off."""
_STYLES: dict[Mark, str] = {"best": "bold", "tied": "underline", "": ""}
_TONES: dict[Tone, str] = {"quiet": "dim", "warning": "yellow", "": ""}


def console() -> Console:
    """A console as wide as the terminal, or 110 columns where there is none (a log file)."""
    wide = Console()
    return wide if wide.is_terminal else Console(width=110)


def print_lines(out: Console, lines: Iterable[str], style: str = "") -> None:
    """Print each of ``lines`` as it is, broken between words where it is longer than ``out`` is wide."""
    for line in lines:
        out.print(line, highlight=False, markup=False, style=style)


def print_table(out: Console, table: Table, *, most_rows: int | None = None, elsewhere: str = "") -> None:
    """Print ``table`` without its notes. What has no room is broken into lines, never cut.

    Args:
        out: where to.
        table: what. Of its columns the optional ones are left out where there is not room for all.
        most_rows: with more rows, the others are counted only.
        elsewhere: what has the columns and rows that are left out.
    """
    columns = _Column.all_of(table, signs=out.color_system is None)
    shown = _with_room(columns, out.width)
    title = Text(table.title, style="bold") if table.title else None
    made = RichTable(box=SIMPLE_HEAVY, title=title, title_justify="left")
    for column, width in zip(shown, _widths(shown, out.width), strict=True):
        justify = "right" if column.head.number else "left"
        made.add_column(Text(column.head.title), justify=justify, width=width, overflow="fold")  # type: ignore[arg-type]
    rows = 0
    for section in table.sections:
        here = section.rows if most_rows is None else section.rows[: most_rows - rows]
        if section.title and here:
            made.add_row(Text(section.title, style="bold italic"))
        for row in here:
            made.add_row(*(column.text(row.cells[column.number]) for column in shown))
        rows += len(here)
    out.print(made)
    if left := len(list(table.rows)) - rows:
        print_lines(out, [f"… and {left} more rows; all are in {elsewhere}."])
    if absent := [column.head.title for column in columns if column not in shown]:
        print_lines(out, [f"Too narrow here for: {', '.join(absent)}; {elsewhere} has them."])


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
        if not head.number:
            names = [head.title, *(section.title for section in table.sections)] if number == 0 else [head.title]
            return cls(head, number, signed, max(whole, *map(cell_len, names)), min(whole, NARROWEST), words)
        whole = max(whole, *map(cell_len, head.title.split()), 1)
        figures = [beside + cell_len(cell.text) for cell in cells if cell.value is not None]
        return cls(head, number, signed, whole, max(words, *figures) if figures else whole, words)

    def text(self, cell: Cell) -> Text:
        """``cell`` as it is printed."""
        style = _TONES[cell.tone] or ("" if self.signed else _STYLES[cell.mark])
        return Text(f"{cell.text} {SIGNS[cell.mark]}" if self.signed else cell.text, style=style)


def _with_room(columns: Sequence[_Column], width: int) -> list[_Column]:
    """The columns that are printed: of the optional ones those that have room, in their order."""
    need = {c: BETWEEN + (c.whole if c.head.number else min(c.whole, WIDEST_NAME)) for c in columns}
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
        [min(column.figures, column.word) for column in columns],
        [1] * len(columns),
    ):
        while sum(widths) > room and any(width > floor for width, floor in zip(widths, floors, strict=True)):
            widest = max((width, n) for n, width in enumerate(widths) if width > floors[n])[1]
            widths[widest] -= 1
    return widths
