"""Labelled text files (csv, tsv, jsonl, parquet, the aclImdb tree) to columns of cells.

Readers check the form of a file; what the cells mean is checked in :mod:`peftlab.data.labels`. Both name
the file and the row: row 1 is the first row of data, line 1 the first line of the file.
"""

from __future__ import annotations

import codecs
import json
import re
from array import array
from dataclasses import replace
from pathlib import Path

from peftlab.data.columns import MissingColumn, check_columns
from peftlab.data.delimited import read_csv
from peftlab.errors import DataError, listed, nearest
from peftlab.raw_rows import RawRows

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
_PARQUET_MAGIC = b"PAR1"
_PIECE = 1 << 20
"""Bytes of a file that are looked at together."""


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
    quotes = _require_text(file)
    if file.suffix == ".jsonl":
        return _read_jsonl(file, text_column, label_column)
    return read_csv(file, text_column, label_column, quotes=quotes)


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


def _require_text(file: Path) -> bool:
    """Refuse what is not UTF-8 text, and say whether there are double quotes in it. A piece at a time."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    quotes = False
    with file.open("rb") as stream:
        head = stream.read(len(_PARQUET_MAGIC))
        if head == _PARQUET_MAGIC:
            raise DataError(f"{file}: by its content this is a parquet file. Rename it to {file.stem}.parquet.")
        if head.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise DataError(f"{file}, line 1, byte 0: the file is UTF-16. Save it as UTF-8.")
        stream.seek(0)
        position, lines = 0, 0
        while piece := stream.read(_PIECE):
            if (nul := piece.find(b"\0")) >= 0:
                line = lines + piece.count(b"\n", 0, nul) + 1
                raise DataError(
                    f"{file}, line {line}, byte {position + nul}: a NUL byte, which no text has. "
                    "The file is damaged, compressed or not text; export it again as UTF-8 text."
                )
            _decode(decoder, piece, file)
            quotes = quotes or b'"' in piece
            position, lines = position + len(piece), lines + piece.count(b"\n")
    _decode(decoder, b"", file, final=True)
    return quotes


def _decode(decoder: codecs.IncrementalDecoder, piece: bytes, file: Path, *, final: bool = False) -> None:
    try:
        decoder.decode(piece, final=final)
    except UnicodeDecodeError:
        raw = file.read_bytes()  # the decoder counts from its last piece
        try:
            raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise not_utf8(file, raw, error) from None
        raise


def not_utf8(file: Path, raw: bytes, error: UnicodeDecodeError) -> DataError:
    """The error for bytes that are not UTF-8, with line, byte and a way to convert them."""
    line = raw.count(b"\n", 0, error.start) + 1
    return DataError(
        f"{file}, line {line}, byte {error.start}: 0x{raw[error.start]:02X} is not UTF-8. If the file is Windows or "
        f"Latin-1 text, convert it: iconv -f WINDOWS-1252 -t UTF-8 {file.name} > converted{file.suffix}"
    )


def _read_jsonl(file: Path, text_column: str, label_column: str | None) -> RawRows:
    texts: list[object] = []
    labels: list[object] = []
    lines = array("q")
    faults: dict[int, DataError] = {}
    # By "\n" alone: str.splitlines also breaks at U+2028 and its like, which JSON strings may contain.
    with file.open(encoding="utf-8-sig", newline="\n") as stream:
        for line, text in enumerate(stream, start=1):
            if not text.strip():
                continue
            place = f"{file}, row {len(lines) + 1} (line {line})"
            entry: dict[str, object] = {}
            try:
                entry = _json_object(place, text.removesuffix("\n"))
                check_columns(place, list(entry), text_column, label_column)
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
        check_columns(str(file), parquet.schema_arrow.names, text_column, label_column)
        texts: list[object] = []
        labels: list[object] = []
        for batch in parquet.iter_batches(columns=[name for name in (text_column, label_column) if name is not None]):
            texts += batch[text_column].to_pylist()
            labels += [None] * len(batch) if label_column is None else batch[label_column].to_pylist()
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
