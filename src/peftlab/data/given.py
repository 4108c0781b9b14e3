"""Labelled texts given from Python: a DataFrame, a ``datasets.Dataset`` or ``DatasetDict``, lists.

The rows stay in memory. A run knows them by their content, which enters its key: the same rows are the same run,
whoever holds them. No later process can read them again, so such a run is predicted with, and not reproduced.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from peftlab.data.base import Splits
from peftlab.data.labels import by_name
from peftlab.data.text_files import TextFiles
from peftlab.errors import DataError, listed, nearest
from peftlab.fields import bookkeeping
from peftlab.raw_rows import FROM_0, RawRows

SPLITS = ("train", "validation", "test")


@dataclass
class GivenRows:
    """The rows of one call, as tables by split, and the names of their classes, if they bring any."""

    tables: dict[str, RawRows]
    labels: list[str] | None
    kind: str
    """What was given, in the words of its user: ``DataFrame``."""
    content: str
    """sha256 over all cells."""


_HELD: WeakValueDictionary[str, GivenRows] = WeakValueDictionary()
"""By content; whoever trains on them, or holds such a run, holds them."""


@dataclass(kw_only=True)
class GivenTexts(TextFiles):
    """Texts given from Python to :func:`peftlab.fit`; they are in the memory of the process that was given them."""

    content: str = ""
    """sha256 of the rows."""
    kind: str = bookkeeping("")
    """What held them: DataFrame, DatasetDict, lists."""

    def __post_init__(self) -> None:
        """Raise ValueError where files are named as well."""
        if any(value is not None for value in (self.path, self.train, self.validation, self.test)):
            raise ValueError(
                "data.path, data.train, data.validation and data.test name files, and data= gives the rows."
            )

    def rows(self) -> GivenRows:
        """The rows.

        Raises:
            DataError: if they are not in this process's memory.
        """
        found = _HELD.get(self.content)
        if found is None:
            raise DataError(f"{self.unavailable()} Give them again: fit(…, data=…).")
        return found

    def unavailable(self) -> str:
        """See :meth:`DataSet.unavailable`."""
        return (
            f"the texts of this run were given from Python ({self.kind or 'in memory'}), and the run knows only the "
            "hash of their content."
        )

    def files(self) -> dict[str, list[Path]]:
        """No file: the content is a field."""
        return {}

    def load(self) -> Splits:
        """As texts from files, with what was given in the place of the files' names."""
        splits = super().load()
        return replace(splits, provenance=splits.provenance | {"source": f"given from Python ({self.kind})"})

    def _split_files(self) -> dict[str, Path]:
        return {split: Path(table.name) for split, table in self.rows().tables.items()}

    def _read(self, split: str, file: Path) -> RawRows:
        return self.rows().tables[split]


def given_rows(
    data: Any, *, text_column: str = "text", label_column: str = "label", second_column: str | None = None
) -> GivenRows:
    """Take ``data`` in.

    Args:
        data: a pandas DataFrame, a ``datasets.Dataset``, a pair of lists (texts, labels); or a ``DatasetDict`` or dict
            of such from ``train``, ``validation`` and ``test``, of which only ``train`` must be there.
        text_column: of the texts, in tables.
        label_column: of the labels, in tables.
        second_column: of second texts, where a row is a pair.

    Raises:
        DataError: naming what it is not, or the column or split that is missing.
    """
    columns = (text_column, label_column, second_column)
    kind = type(data).__name__
    if isinstance(data, Mapping):
        if unknown := [str(name) for name in data if name not in SPLITS]:
            raise DataError(
                f"data= has a split '{unknown[0]}', which is none of {', '.join(SPLITS)}."
                f"{nearest(unknown[0], SPLITS)} Give a dict of the splits that are meant."
            )
        if "train" not in data:
            raise DataError(f"data= has no split 'train' among {listed(map(str, data))}.")
        tables = {name: _table(data[name], f"data={kind}['{name}']", columns) for name in SPLITS if name in data}
        labels = _class_names(data["train"], label_column)
    else:
        tables = {"train": _table(data, f"data={_kind(data)}", columns)}
        labels = _class_names(data, label_column)
        kind = _kind(data)
    digest = hashlib.sha256()
    for name, table in tables.items():
        digest.update(f"{name}\0{len(table.texts)}\0".encode())
        for cells in zip(table.texts, table.labels, *([table.seconds] if table.seconds else []), strict=True):
            digest.update("".join(f"{len(repr(cell))}\0{cell!r}" for cell in cells).encode("utf-8", "surrogatepass"))
    digest.update(repr(labels).encode())
    for name, table in tables.items():  # by name: the classes of another split may have another order
        of_split = data[name] if isinstance(data, Mapping) else data
        tables[name] = replace(table, labels=by_name(table.labels, _class_names(of_split, label_column)))
    rows = GivenRows(tables, labels, kind, digest.hexdigest())
    return _HELD.setdefault(rows.content, rows)


def _kind(data: Any) -> str:
    return "lists" if isinstance(data, tuple | list) else type(data).__name__


def _table(data: Any, name: str, wanted: tuple[str, str, str | None]) -> RawRows:
    text, label, second = wanted
    if isinstance(data, tuple | list):
        if second is not None or len(data) != 2 or any(isinstance(part, str | bytes) for part in data):
            raise DataError(f"{name}: lists are given as a pair, data=(texts, labels); pairs of texts as a DataFrame.")
        texts, labels = (_cells(part, name) for part in data)
        if len(texts) != len(labels):
            raise DataError(f"{name}: {len(texts)} texts and {len(labels)} labels. Give one label a text.")
        cells: dict[str, list[object]] = {text: texts, label: labels}
    else:
        columns = getattr(data, "columns", None)
        if not isinstance(getattr(data, "column_names", None), list) and columns is None:
            columns = ()
        there = [str(column) for column in (data.column_names if columns is None else columns)]
        if not there or not hasattr(data, "__len__"):
            raise DataError(
                f"{name}: texts are given as a pandas DataFrame, a datasets.Dataset that is no stream, a DatasetDict, "
                "or a pair of lists (texts, labels)."
            )
        cells = {}
        for column, key in ((text, "text_column"), (label, "label_column"), (second, "second_column")):
            if column is None:
                continue
            if column not in there:
                raise DataError(
                    f"{name} has no column '{column}'.{nearest(column, there)} It has: {listed(there)}. Name the right "
                    f"one: fit(…, 'data.{key}=…', data=…)."
                )
            cells[column] = _cells(data[column], name)
    rows = len(cells[text])
    if not rows:
        raise DataError(f"{name} has no rows. Give at least one labelled text.")
    index, index_name = _index(data, rows)
    return RawRows(
        name, cells[text], cells[label], None, text, label, cells[second] if second else None, second or "",
        index=index, index_name=index_name,
    )  # fmt: skip


def _index(data: Any, rows: int) -> tuple[Sequence[object], str]:
    """What ``data`` calls its rows, as Python counts them: a pandas frame by its index, anything else from 0."""
    own: Any = getattr(data, "index", None)
    if not hasattr(own, "is_unique"):
        return range(rows), FROM_0
    return (own.tolist(), "its index") if own.is_unique else (range(rows), f"{FROM_0}; its index repeats itself")


def _cells(column: Any, name: str) -> list[object]:
    """Plain Python values: numpy's numbers and missing values become Python's."""
    if not isinstance(column, Sequence) and not hasattr(column, "__iter__"):
        raise DataError(f"{name}: {type(column).__name__} is no list of texts or labels.")
    plain = column.tolist() if hasattr(column, "tolist") else list(column)
    values = [cell.item() if hasattr(cell, "item") and not isinstance(cell, str) else cell for cell in plain]
    return [None if type(cell).__name__ in ("NAType", "NaTType") else cell for cell in values]


def _class_names(data: Any, column: str) -> list[str] | None:
    """The names behind the numbers of a ``datasets.ClassLabel`` column."""
    feature = (getattr(data, "features", None) or {}).get(column)
    names = getattr(feature, "names", None)
    return None if names is None else [str(name) for name in names]
