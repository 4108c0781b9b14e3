"""csv and tsv files, a record at a time: what is kept in memory are the cells of the columns asked for.

Between fields stands what the suffix says, unless the columns asked for are in the header line with another sign alone:
a spreadsheet writes semicolons where a comma is in numbers, and calls the file csv.

Quotes may quote a field or be plain characters (a tsv's often are). Where each line is a record of its own, with labels
that the others have too, while quotes would join some of them, rows would be lost: a tsv is then read line by line, and
a csv is refused.
"""

from __future__ import annotations

import csv
import logging
import re
import sys
from array import array
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from peftlab.data.columns import check_columns
from peftlab.errors import DataError
from peftlab.raw_rows import RawRows

logger = logging.getLogger(__name__)

SEPARATORS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "vertical bar"}
"""What may stand between fields, and what it is called."""
_NAMES_SEPARATOR = re.compile(r"sep=.")
"""A first line that some programs write for Excel; it is no header."""
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
        file: the file; its suffix says what is between fields, or else its header line.
        text_column: column of the text.
        label_column: column of the label; None: labels are None.
        quotes: whether there are double quotes in the file.

    Raises:
        DataError: for columns that are not there, a file without rows, and quotes that are not closed or that can be
            read in two ways.
    """
    delimiter = separator_of(file, [text_column, *([] if label_column is None else [label_column])])
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
                raise _two_readings(file, table, lines, delimiter)
            by_line = True
    if by_line:
        table = _collected(file, _line_records(file, delimiter), delimiter, text_column, label_column)
    if delimiter != _usual(file):
        _say(str(file), delimiter)
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
            between = "" if delimiter == _usual(file) else f"{_name(delimiter)} '{delimiter}'"
            check_columns(str(file), header, text_column, label_column, between)
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


def separator_of(file: Path, wanted: Sequence[str]) -> str:
    """What stands between the fields of a csv or tsv file.

    Args:
        file: is UTF-8 text.
        wanted: columns that it must have.

    Returns:
        what its suffix says, unless the header line has the ``wanted`` columns with another sign alone; where no sign
        finds them, the one that makes the most columns, so that an error names these.
    """
    usual = _usual(file)
    found = {usual: _headers(file, usual)}
    if not any(_has(header, wanted) for header in found[usual]):
        found |= {sign: _headers(file, sign) for sign in SEPARATORS if sign != usual}
        for sign, headers in found.items():
            if any(_has(header, wanted) for header in headers):
                return sign
        widths = {sign: max(map(len, headers), default=0) for sign, headers in found.items()}
        return max(widths, key=widths.__getitem__)
    return usual


def separators(files: Mapping[str, Path], wanted: Sequence[str]) -> dict[str, dict[str, str]]:
    """What a record says of files, by split, that are not separated as their suffix says; nothing if all are."""
    tables = {split: file for split, file in files.items() if file.suffix in (".csv", ".tsv") and file.is_file()}
    other = {}
    for split, file in tables.items():
        with suppress(UnicodeDecodeError):  # who reads the file says it
            if (sign := separator_of(file, wanted)) != _usual(file):
                other[split] = sign
    return {"separator": other} if other else {}


def _usual(file: Path) -> str:
    return "\t" if file.suffix == ".tsv" else ","


def _has(header: Sequence[str], wanted: Sequence[str]) -> bool:
    return all(name in header for name in wanted)


def _headers(file: Path, delimiter: str) -> list[list[str]]:
    """The names of the columns: with quotes that quote, and with plain ones."""
    found = []
    for records in (_quoted_records(file, delimiter), _line_records(file, delimiter)):
        with closing(records):
            try:
                _, fields = next(records, (0, []))
            except _OpenQuote:
                continue
        found.append([name.strip() for name in fields])
    return found


@lru_cache(maxsize=1000)
def _say(file: str, delimiter: str) -> None:
    """Once, however many columns are read of the file."""
    logger.warning(
        "%s: its columns are separated by the %s '%s', as the header line has it.", file, _name(delimiter), delimiter
    )


def _name(delimiter: str) -> str:
    return SEPARATORS[delimiter]


def _line_records(file: Path, delimiter: str) -> Generator[_Record, None, None]:
    """Each line that is not blank, quotes being plain characters."""
    with file.open(encoding="utf-8-sig", newline="\n") as stream:
        for number, line in enumerate(stream, start=1):
            text = line.rstrip("\r\n")
            if text and not (number == 1 and _NAMES_SEPARATOR.fullmatch(text)):
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


def _two_readings(file: Path, table: _Table, lines: _Lines, delimiter: str) -> DataError:
    """The error for a csv whose quotes join lines that are records without them."""
    numbers = (number for number, _ in _line_records(file, delimiter))
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


def _quoted_records(file: Path, delimiter: str) -> Generator[_Record, None, None]:
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
            if fields and not (line == 1 and _NAMES_SEPARATOR.fullmatch(delimiter.join(fields))):
                yield line, fields


@contextmanager
def _any_field_size() -> Iterator[None]:
    """Lift csv's limit of 131,072 characters a field (it is global) while a file is read."""
    limit = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(limit)
