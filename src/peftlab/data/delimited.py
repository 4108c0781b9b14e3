"""csv and tsv files, a record at a time: what is kept in memory are the cells of the columns asked for.

Quotes may quote a field or be plain characters (a tsv's often are). Where each line is a record of its own, with labels
that the others have too, while quotes would join some of them, rows would be lost: a tsv is then read line by line, and
a csv is refused.
"""

from __future__ import annotations

import csv
import sys
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from peftlab.data.columns import check_columns
from peftlab.errors import DataError
from peftlab.raw_rows import RawRows

_Record = tuple[int, list[str]]
"""The line that a record begins on, and its fields."""
_SHARED_LABELS = 10_000
"""Equal labels are one string in memory, up to so many different ones."""


class _OpenQuote(DataError):
    """Quotes that are not closed, or closed in the middle of a field."""


@dataclass
class _Table:
    """The cells of two columns."""

    header_line: int = 0
    texts: list[object] = field(default_factory=list)
    labels: list[object] = field(default_factory=list)
    lines: array[int] = field(default_factory=lambda: array("q"))
    faults: dict[int, str] = field(default_factory=dict)
    faulty_labels: set[str] = field(default_factory=set)
    """What stands in the label's place of records that have too many or too few fields."""

    def starts(self) -> Iterator[int]:
        """The line of every record, the header's too."""
        yield self.header_line
        yield from self.lines


@dataclass(frozen=True)
class _Lines:
    """What the file is if each of its lines is a record and quotes are plain characters."""

    rows: int
    labels: frozenset[str] | None
    """The labels there would be; None if there is no such column."""


def read_csv(file: Path, text_column: str, label_column: str | None, *, quotes: bool) -> RawRows:
    """The text and label cells of a csv or tsv file, which is UTF-8 text.

    Args:
        file: the file; its suffix says what is between fields.
        text_column: column of the text.
        label_column: column of the label; None: labels are None.
        quotes: whether there are double quotes in the file.

    Raises:
        DataError: for columns that are not there, a file without rows, and quotes that are not closed or that can be
            read in two ways.
    """
    delimiter = "\t" if file.suffix == ".tsv" else ","
    lines = _as_lines(file, delimiter, label_column) if quotes else None
    by_line = False
    try:
        table = _collected(file, _quoted_records(file, delimiter), delimiter, text_column, label_column)
    except _OpenQuote:
        if lines is None or delimiter != "\t":
            raise
        by_line = True
    else:
        if lines is not None and lines.rows != len(table.lines) and _same_labels(lines, table, label_column):
            if delimiter != "\t":
                raise _two_readings(file, table, lines)
            by_line = True
    if by_line:
        table = _collected(file, _line_records(file, delimiter), delimiter, text_column, label_column)
    if not table.lines:
        raise DataError(f"{file}: no rows below the header. Give at least one labelled text.")
    return RawRows(
        str(file), table.texts, table.labels, table.lines, text_column, label_column or "", faults=table.faults
    )


def _collected(
    file: Path, records: Iterator[_Record], delimiter: str, text_column: str, label_column: str | None
) -> _Table:
    table = _Table()
    header: list[str] | None = None
    text_place, label_place = 0, None
    shared: dict[str, str] = {}
    for line, fields in records:
        if header is None:
            header, table.header_line = [name.strip() for name in fields], line
            check_columns(str(file), header, text_column, label_column)
            text_place = header.index(text_column)
            label_place = None if label_column is None else header.index(label_column)
            continue
        text: str | None = None
        label: str | None = None
        if len(fields) == len(header):
            text = fields[text_place]
            if label_place is not None:
                label = fields[label_place]
                label = shared.setdefault(label, label) if len(shared) < _SHARED_LABELS else shared.get(label, label)
        else:
            table.faults[len(table.lines)] = (
                f"{file}, row {len(table.lines) + 1} (line {line}): {len(fields)} fields, but the header has "
                f"{len(header)} ({', '.join(header)}). A text that contains a {_name(delimiter)}, "
                'a quote or a line break needs "quotes" around it.'
            )
            if label_place is not None and len(fields) > label_place:
                table.faulty_labels.add(fields[label_place])
        table.texts.append(text)
        table.labels.append(label)
        table.lines.append(line)
    return table


def _name(delimiter: str) -> str:
    return "tab" if delimiter == "\t" else "comma"


def _line_records(file: Path, delimiter: str) -> Iterator[_Record]:
    """Each line that is not blank, quotes being plain characters."""
    with file.open(encoding="utf-8-sig", newline="\n") as stream:
        for number, line in enumerate(stream, start=1):
            if text := line.rstrip("\r\n"):
                yield number, text.split(delimiter)


def _as_lines(file: Path, delimiter: str, label_column: str | None) -> _Lines | None:
    """What the file is read line by line; None if not all lines have as many fields as the first, and several."""
    width, rows = 0, -1
    place: int | None = None
    labels: set[str] = set()
    for _, fields in _line_records(file, delimiter):
        if rows < 0:
            width = len(fields)
            header = [name.strip() for name in fields]
            place = header.index(label_column) if label_column in header else None
        elif place is not None:
            labels.add(fields[place] if place < len(fields) else "")
        if len(fields) != width or width < 2:
            return None
        rows += 1
    if rows < 0:
        return None
    return _Lines(rows, None if place is None and label_column is not None else frozenset(labels))


def _same_labels(lines: _Lines, table: _Table, label_column: str | None) -> bool:
    """Whether the lines have no label that the quoted records have not: a text cut at its line breaks has."""
    if label_column is None:
        return True
    return lines.labels is not None and lines.labels <= {*table.labels, *table.faulty_labels}


def _two_readings(file: Path, table: _Table, lines: _Lines) -> DataError:
    """The error for a csv whose quotes join lines that are records without them."""
    numbers = (number for number, _ in _line_records(file, ","))
    before = table.header_line
    for start, number in zip(table.starts(), numbers, strict=False):
        if start != number:
            break
        before = start
    return DataError(
        f"{file}, record beginning on line {before}: its quotes join several lines that are whole "
        f"records without them: {len(table.lines)} rows or {lines.rows}. Write a quote that belongs to a text twice "
        'and quote the field ("He said ""no"""), or save the file as tsv, whose quotes are plain characters.'
    )


def _quoted_records(file: Path, delimiter: str) -> Iterator[_Record]:
    """The records that are not blank, quotes quoting."""
    with _any_field_size(), file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        while True:
            line = reader.line_num + 1
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise _OpenQuote(
                    f"{file}, record beginning on line {line}: {error}. Look for a quote that is not closed "
                    'there; a quote inside a quoted text is written twice ("").'
                ) from None
            if fields:
                yield line, fields


@contextmanager
def _any_field_size() -> Iterator[None]:
    """Lift csv's limit of 131,072 characters a field (it is global) while a file is read."""
    limit = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(limit)
