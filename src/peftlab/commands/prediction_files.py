"""Files of texts to predict from, read by the run's columns, and files of predictions, a row a text."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftlab.data.columns import MissingColumn
from peftlab.data.labels import to_texts
from peftlab.data.readers import SUFFIXES, read_column, read_table
from peftlab.errors import ConfigError, DataError
from peftlab.files import write_atomically
from peftlab.raw_rows import RawRows
from peftlab.report.table import csv_text

ID_COLUMNS = ("id", "idx")
"""What a column of ids is called, unless it is said."""

_TAKEN = ("text", "label", "probabilities", "value", "task")


@dataclass(frozen=True)
class Rows:
    """What a file of texts holds: texts (pairs as one string), and an id each, if it has any."""

    texts: list[str]
    id_column: str | None = None
    ids: list[object] | None = None

    def with_id(self, row: int) -> dict[str, object]:
        """The id of a row by the name of its column; nothing without ids."""
        return {} if self.ids is None else {str(self.id_column): self.ids[row]}


def is_table(file: str | None) -> bool:
    """Whether a file has columns, by its name; other files have a text a line."""
    return file is not None and Path(file).suffix.lower() in SUFFIXES


def read_rows(
    file: str,
    text_column: str,
    second_column: str | None,
    id_column: str | None = None,
    *,
    own: tuple[str, str | None] | None = None,
) -> Rows:
    """The texts of a csv, tsv, jsonl or parquet file, and its ids.

    Args:
        file: as typed.
        text_column: of the texts.
        second_column: of second texts, for a run on pairs.
        id_column: kept beside each prediction; None: ``id`` or ``idx``, where there is one.
        own: what the run's own columns are called, where these are others.

    Raises:
        DataError: naming the column that is not there, or every row without a text.
    """
    path = Path(file).expanduser()
    try:
        table = read_table(path, text_column, None)
        if second_column is not None:
            second = read_table(path, second_column, None)
            table = RawRows(
                table.name, table.texts, table.labels, table.lines, text_column, "", second.texts, second_column,
                faults=second.faults | table.faults,
            )  # fmt: skip
    except MissingColumn as error:
        trained_on = " and ".join(f"'{name}'" for name in own or (text_column, second_column) if name)
        raise DataError(
            f"{error} The run was trained on the column {trained_on}; "
            "name this file's: --text-column NAME"
            f"{'' if second_column is None else ' --second-column NAME'}."
        ) from None
    if id_column in _TAKEN:
        raise ConfigError(f"--id-column {id_column}: predictions have a column of that name. Rename this one.")
    texts = to_texts(table, _NoLabels()).texts
    for column in ID_COLUMNS if id_column is None else (id_column,):
        ids = read_column(path, column)
        if ids is not None:
            return Rows(texts, column, ids)
    if id_column is not None:
        raise DataError(f"--id-column {id_column}: {file} has no such column.")
    return Rows(texts)


class _NoLabels:
    """Reads no labels: what a text is labelled is asked of the model."""

    names = ()

    def read(self, table: RawRows, row: int) -> None:
        """None."""


def require_writable(file: str, option: str) -> Path:
    """The path of a file of predictions that may be written.

    Raises:
        ConfigError: for another suffix, a missing folder, or a file that is there already.
    """
    path = Path(file).expanduser()
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"{option} {file}: unknown suffix '{path.suffix}'. Allowed: {', '.join(SUFFIXES)}.")
    if path.exists() or path.is_symlink():
        raise ConfigError(f"{option} {file}: this is there already, and is not overwritten. Give another name.")
    if not path.parent.is_dir():
        raise ConfigError(f"{option} {file}: there is no folder {path.parent}. Make it, or give another.")
    return path


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write predictions by the suffix of ``path``; a mapping (label → probability) is a column each in tables.
    In csv and tsv a text that a spreadsheet would run as a formula has an apostrophe in front.

    Returns:
        how many rows.
    """
    found = list(rows)
    write_atomically(path, _WRITERS[path.suffix](found))
    return len(found)


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            flat |= {f"probability of {label}": share for label, share in value.items()}
        else:
            flat[name] = value
    return flat


def _csv(rows: list[Mapping[str, Any]], delimiter: str) -> str:
    flat = [_flat(row) for row in rows]
    head = list(dict.fromkeys(name for row in flat for name in row))
    return csv_text(head, ([row.get(name) for name in head] for row in flat), delimiter)


def _jsonl(rows: list[Mapping[str, Any]]) -> str:
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)


def _parquet(rows: list[Mapping[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    stream = io.BytesIO()
    flat = [_flat(row) for row in rows]
    head = list(dict.fromkeys(name for row in flat for name in row))
    pq.write_table(pa.table({name: pa.array([row.get(name) for row in flat]) for name in head}), stream)
    return stream.getvalue()


_WRITERS: dict[str, Callable[[list[Mapping[str, Any]]], str | bytes]] = {
    ".csv": lambda rows: _csv(rows, ","),
    ".tsv": lambda rows: _csv(rows, "\t"),
    ".jsonl": _jsonl,
    ".parquet": _parquet,
}
