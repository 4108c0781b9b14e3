"""A table as everything shows it: head, sections, rows and cells, all of them decided. ``render`` shows one."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

Mark = Literal["", "best", "tied"]
"""``tied``: not significantly worse than the best."""
Tone = Literal["", "quiet", "warning"]
"""How much a reader should look at it."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell."""

    text: str
    value: float | None = None
    """The number that the text says, for sorting; None if there is none, or none that is finite."""
    mark: Mark = ""
    tone: Tone = ""


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a column."""

    title: str
    """On a terminal broken between words, or where it has line ends, there."""
    number: bool = False
    """Whether the cells are numbers, which stand on the right."""
    optional: bool = False
    """Whether it may be left out where there is not room for all."""
    implied: bool = False
    """Whether all rows say the same there and the caption says it: it is left out of tables for papers."""
    whole: bool = False
    """Of text: whether it is never broken, since it is copied."""
    gives_way: bool = False
    """Of text: whether it is rather broken into many lines than that another column is left out."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row."""

    cells: tuple[Cell, ...]
    id: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """Rows under a heading; without a heading if the title is empty."""

    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Table:
    """A table."""

    heads: tuple[Head, ...]
    sections: tuple[Section, ...]
    title: str = ""
    leads: int = 1
    """How many of the first columns say which row it is."""
    notes: tuple[str, ...] = ()
    """Below the table, a paragraph each."""
    caption: str = ""
    """What the cells are, in a sentence."""

    @property
    def paragraphs(self) -> tuple[str, ...]:
        """Caption and notes, where both stand below the table."""
        return (self.caption, *self.notes) if self.caption else self.notes

    @property
    def brief(self) -> Table:
        """Without the columns that say nothing which the caption does not."""
        kept = [number for number, head in enumerate(self.heads) if not head.implied]
        if len(kept) == len(self.heads):
            return self
        sections = tuple(
            replace(of, rows=tuple(replace(row, cells=tuple(row.cells[i] for i in kept)) for row in of.rows))
            for of in self.sections
        )
        return replace(self, heads=tuple(self.heads[i] for i in kept), sections=sections)

    @property
    def rows(self) -> Iterator[Row]:
        """All rows, in their order."""
        return (row for section in self.sections for row in section.rows)


def plain_table(heads: Sequence[Head], lines: Iterable[Sequence[str]], *, title: str = "") -> Table:
    """A table without sections, of texts."""
    rows = tuple(Row(tuple(map(Cell, line))) for line in lines)
    return Table(tuple(heads), (Section("", rows),), title)


def csv_text(head: Sequence[str], lines: Iterable[Sequence[Any]], delimiter: str = ",") -> str:
    """Lines of values, with full precision; None is an empty cell, and a text never a formula of a spreadsheet."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
    writer.writerow(map(_no_formula, head))
    writer.writerows(map(_no_formula, line) for line in lines)
    return text.getvalue()


def _no_formula(value: Any) -> Any:
    """``value``; a text that a spreadsheet would run, with the apostrophe in front that makes it a text there."""
    if not isinstance(value, str) or not value or (value[0] not in "=+-@" and not value[0].isspace()):
        return value
    if not value.lstrip().startswith(("=", "+", "-", "@")):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value
