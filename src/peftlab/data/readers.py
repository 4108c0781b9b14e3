"""Labelled text files (csv, tsv, jsonl, parquet, the aclImdb tree) to columns of cells.

Readers check the form of a file; what the cells mean is checked in :mod:`peftlab.data.labels`. Both name
the file and the row: row 1 is the first row of data, line 1 the first line of the file.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from peftlab.errors import DataError, listed, nearest
from peftlab.raw_rows import RawRows

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
_PARQUET_MAGIC = b"PAR1"


class MissingColumn(DataError):
    """A column that a file does not have."""


def read_table(file: Path, text_column: str = "text", label_column: str | None = "label") -> RawRows:
    """Read one csv, tsv, jsonl or parquet file; without a ``label_column`` its labels are None.

    Raises:
        DataError: if it is missing, empty, not what its suffix says, or lacks one of the columns.
    """
    if not file.is_file():
        raise DataError(f"{file}: there is no such file.{_beside(file)}")
    if file.suffix not in SUFFIXES:
        raise DataError(f"{file}: unknown suffix '{file.suffix}'. Allowed: {', '.join(SUFFIXES)}.")
    if file.stat().st_size == 0:
        raise DataError(f"{file}: the file is empty. Give a file with at least one labelled text.")
    if file.suffix == ".parquet":
        return _read_parquet(file, text_column, label_column)
    content = _decoded(file)
    if file.suffix == ".jsonl":
        return _read_jsonl(file, content, text_column, label_column)
    return _read_csv(file, content, text_column, label_column)


def read_column(file: Path, column: str) -> list[object] | None:
    """The cells of one column, whatever they hold; None if there is no such column."""
    try:
        return read_table(file, column, None).texts
    except MissingColumn:
        return None


def read_pairs(file: Path, text_column: str, second_column: str, label_column: str = "label") -> RawRows:
    """Like :func:`read_table`, of two texts a row."""
    first, second = (read_table(file, column, label_column) for column in (text_column, second_column))
    return replace(first, seconds=second.texts, second_column=second_column, faults=second.faults | first.faults)


def _beside(file: Path) -> str:
    """What the folder of a missing file does hold."""
    if not file.parent.is_dir():
        return f" Nor is there a folder {file.parent}."
    names = [entry.name for entry in file.parent.iterdir()]
    return f" {file.parent} holds: {listed(names, 12)}.{nearest(file.name, names)}"


def _decoded(file: Path) -> str:
    raw = file.read_bytes()
    if raw.startswith(_PARQUET_MAGIC):
        raise DataError(f"{file}: by its content this is a parquet file. Rename it to {file.stem}.parquet.")
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{file}, line 1, byte 0: the file is UTF-16. Save it as UTF-8.")
    if (position := raw.find(b"\0")) >= 0:
        line = raw.count(b"\n", 0, position) + 1
        raise DataError(
            f"{file}, line {line}, byte {position}: a NUL byte, which no text has. "
            "The file is damaged, compressed or not text; export it again as UTF-8 text."
        )
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise not_utf8(file, raw, error) from None


def not_utf8(file: Path, raw: bytes, error: UnicodeDecodeError) -> DataError:
    """The error for bytes that are not UTF-8, with line, byte and a way to convert them."""
    start = error.start + (3 if raw.startswith(b"\xef\xbb\xbf") else 0)  # utf-8-sig counts after the mark
    line = raw.count(b"\n", 0, start) + 1
    return DataError(
        f"{file}, line {line}, byte {start}: 0x{raw[start]:02X} is not UTF-8. If the file is Windows or "
        f"Latin-1 text, convert it: iconv -f WINDOWS-1252 -t UTF-8 {file.name} > converted{file.suffix}"
    )


def _check_columns(file: str, columns: list[str], text_column: str, label_column: str | None) -> None:
    repeated = [name for name, count in Counter(columns).items() if count > 1]
    if repeated:
        raise DataError(f"{file}: column '{repeated[0]}' is there twice. Give every column its own name.")
    for key, wanted in (("text_column", text_column), ("label_column", label_column)):
        if wanted is not None and wanted not in columns:
            raise MissingColumn(
                f"{file}: there is no column '{wanted}' ({key}). "
                f"Columns there are: {', '.join(columns) or '(none)'}.{nearest(wanted, columns)}"
            )


@contextmanager
def _any_field_size() -> Iterator[None]:
    """Lift csv's limit of 131,072 characters a field (it is global) while a file is read."""
    limit = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _read_csv(file: Path, content: str, text_column: str, label_column: str | None) -> RawRows:
    delimiter = "\t" if file.suffix == ".tsv" else ","
    texts: list[object] = []
    labels: list[object] = []
    lines: list[int] = []
    faults: dict[int, str] = {}
    header: list[str] | None = None
    with _any_field_size():
        for line, fields in _csv_records(file, content, delimiter, label_column):
            if header is None:
                header = [name.strip() for name in fields]
                _check_columns(str(file), header, text_column, label_column)
                continue
            whole = len(fields) == len(header)
            if not whole:
                faults[len(lines)] = (
                    f"{file}, row {len(lines) + 1} (line {line}): {len(fields)} fields, but the header has "
                    f"{len(header)} ({', '.join(header)}). A text that contains a {_name(delimiter)}, "
                    'a quote or a line break needs "quotes" around it.'
                )
            texts.append(fields[header.index(text_column)] if whole else None)
            labels.append(fields[header.index(label_column)] if whole and label_column is not None else None)
            lines.append(line)
    if not lines:
        raise DataError(f"{file}: no rows below the header. Give at least one labelled text.")
    return RawRows(str(file), texts, labels, lines, text_column, label_column or "", faults=faults)


def _name(delimiter: str) -> str:
    return "tab" if delimiter == "\t" else "comma"


_Records = list[tuple[int, list[str]]]
"""Fields of each record, with the line that it begins on."""


def _csv_records(file: Path, content: str, delimiter: str, label_column: str | None) -> _Records:
    """The records that are not blank.

    Quotes may quote a field or be plain characters (a tsv's often are). Where each line is a record of its own, with
    labels that the others have too, while quotes would join some of them, rows would be lost: a tsv is then read line
    by line, and a csv is refused.

    Raises:
        DataError: for quotes that are not closed, or that can be read in two ways.
    """
    lines = _whole_lines(content, delimiter) if '"' in content else None
    try:
        quoted = list(_quoted_records(file, content, delimiter))
    except DataError:
        if lines is None or delimiter != "\t":
            raise
        return lines
    if lines is None or len(lines) == len(quoted) or not _same_labels(lines, quoted, label_column):
        return quoted
    if delimiter == "\t":
        return lines
    joined = next((i for i, ((a, _), (b, _)) in enumerate(zip(quoted, lines, strict=False)) if a != b), len(quoted))
    raise DataError(
        f"{file}, record beginning on line {quoted[joined - 1][0]}: its quotes join several lines that are whole "
        f"records without them: {len(quoted) - 1} rows or {len(lines) - 1}. Write a quote that belongs to a text twice "
        'and quote the field ("He said ""no"""), or save the file as tsv, whose quotes are plain characters.'
    )


def _whole_lines(content: str, delimiter: str) -> _Records | None:
    """Each line as a record with plain quotes; None if not all of them have as many fields as the first."""
    numbered = enumerate(content.split("\n"), start=1)
    records = [(number, line.rstrip("\r").split(delimiter)) for number, line in numbered if line.strip("\r")]
    return records if len({len(fields) for _, fields in records}) == 1 and len(records[0][1]) > 1 else None


def _same_labels(lines: _Records, quoted: _Records, label_column: str | None) -> bool:
    """Whether the lines have no label that the quoted records have not: a text cut at its line breaks has."""
    if label_column is None:
        return True
    header = [name.strip() for name in lines[0][1]]
    if label_column not in header:
        return False
    place = header.index(label_column)
    known = {fields[place] for _, fields in quoted[1:] if len(fields) > place}
    return all(fields[place] in known for _, fields in lines[1:])


def _quoted_records(file: Path, content: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The same where quotes quote."""
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"{file}, record beginning on line {line}: {error}. Look for a quote that is not closed "
                'there; a quote inside a quoted text is written twice ("").'
            ) from None
        if fields:
            yield line, fields


def _read_jsonl(file: Path, content: str, text_column: str, label_column: str | None) -> RawRows:
    texts: list[object] = []
    labels: list[object] = []
    lines: list[int] = []
    faults: dict[int, DataError] = {}
    # Not splitlines(): that also breaks at U+2028 and its like, which JSON strings may contain.
    for line, text in enumerate(content.split("\n"), start=1):
        if not text.strip():
            continue
        place = f"{file}, row {len(lines) + 1} (line {line})"
        entry: dict[str, object] = {}
        try:
            entry = _json_object(place, text)
            _check_columns(place, list(entry), text_column, label_column)
        except DataError as error:
            faults[len(lines)] = error
        texts.append(entry.get(text_column))
        labels.append(None if label_column is None else entry.get(label_column))
        lines.append(line)
    if not lines:
        raise DataError(f"{file}: only blank lines. Give at least one labelled text.")
    if len(faults) == len(lines):  # no row's fault, but the file's or the column's
        raise faults[0]
    said = {row: str(error) for row, error in faults.items()}
    return RawRows(str(file), texts, labels, lines, text_column, label_column or "", faults=said)


def _json_object(place: str, text: str) -> dict[str, object]:
    form = 'Each line must be one object such as {"text": "…", "label": "…"}.'
    try:
        entry = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: not JSON ({error.msg} at column {error.colno}). {form}") from None
    if not isinstance(entry, dict):
        raise DataError(f"{place}: JSON, but a {type(entry).__name__} and not an object. {form}")
    return entry


def _read_parquet(file: Path, text_column: str, label_column: str | None) -> RawRows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with file.open("rb") as stream:
        head = stream.read(4)
    if head != _PARQUET_MAGIC:
        raise DataError(
            f"{file}: not a parquet file (it begins with {head!r} and not with {_PARQUET_MAGIC!r}). "
            f"Name it after what it is: {', '.join(SUFFIXES[:-1])}."
        )
    try:
        parquet = pq.ParquetFile(file)
        _check_columns(str(file), parquet.schema_arrow.names, text_column, label_column)
        columns = parquet.read(columns=[text_column] if label_column is None else [text_column, label_column])
        texts = columns[text_column].to_pylist()
        labels = [None] * len(texts) if label_column is None else columns[label_column].to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: a damaged parquet file ({error}). Fetch or write it again.") from None
    if not texts:
        raise DataError(f"{file}: the file has no rows. Give at least one labelled text.")
    return RawRows(str(file), texts, labels, None, text_column, label_column or "")


_REVIEW_NAME = re.compile(r"([0-9]+)_([0-9]+)\.txt")


def review_files(folder: Path, topics: tuple[str, ...] = ("neg", "pos")) -> list[Path]:
    """``neg/ID_RATING.txt`` and ``pos/ID_RATING.txt`` of one split of the aclImdb tree, each by ID.

    Raises:
        DataError: for a folder that is missing or holds no reviews, and for a name of another form.
    """
    files: list[Path] = []
    for topic in topics:
        if not (folder / topic).is_dir():
            raise DataError(f"{folder / topic}: there is no such folder; aclImdb has neg and pos there.")
        numbered = []
        for file in (folder / topic).glob("*.txt"):
            match = _REVIEW_NAME.fullmatch(file.name)
            if match is None:
                raise DataError(f"{file}: not a review of aclImdb, whose files are called ID_RATING.txt.")
            numbered.append((int(match.group(1)), file))
        if not numbered:
            raise DataError(f"{folder / topic}: no reviews (ID_RATING.txt) in this folder.")
        files += [file for _, file in sorted(numbered)]
    return files


def read_review_tree(folder: Path) -> RawRows:
    """One split of the aclImdb tree; the label of a review is the name of its folder."""
    texts: list[object] = []
    labels: list[object] = []
    for file in review_files(folder):
        raw = file.read_bytes()
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise not_utf8(file, raw, error) from None
        if not text.strip():
            raise DataError(f"{file}: the review is empty. Unpack the archive again.")
        texts.append(text)
        labels.append(file.parent.name)
    return RawRows(str(folder), texts, labels)
