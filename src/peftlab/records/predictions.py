"""What a run predicted of each row of its test: ``predictions.parquet``, beside its record. Imports no torch.

A row a test row, in the order of the split: :data:`COLUMNS_OF_ALL`, then what the objective says
(:attr:`peftlab.objectives.base.Objective.columns`). Where tasks differ in kind, a column that means different
things is ``gold_value`` for numbers. The order of the classes stands in the file too (:func:`class_names`).
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from peftlab.errors import RunError, first_line
from peftlab.reading import read_bytes
from peftlab.records.folder import RunFolder
from peftlab.records.integrity import PREDICTIONS, WAY_OUT

if TYPE_CHECKING:
    import pyarrow

COLUMNS_OF_ALL = {
    "row": "number of the row in the test split, from 0",
    "hash": "16 hex digits over text and label, alike in every run that tests this row",
    "task": "name of the row's task, where there are several; the columns of others are empty then",
    "gold_value": "gold of the tasks with numbers, where tasks differ in kind",
}
"""Column of every run, or of every run on several tasks → what it holds."""
_NAMES = b"peftlab.label_names"


def read_predictions(folder: RunFolder, record: Mapping[str, Any] | None = None) -> pyarrow.Table:
    """The predictions of a finished run on its test, as the module says.

    Args:
        folder: the run's.
        record: its record; None: it is read.

    Raises:
        RunError: if the run kept none, or the file is not the one that it wrote.
    """
    import pyarrow.parquet as pq

    path = folder.path / PREDICTIONS
    record = folder.read_record() if record is None else record
    facts = ((record or {}).get("files") or {}).get(PREDICTIONS)
    if facts is None:
        raise RunError(
            f"the run in '{folder.path}' kept no predictions: it has not finished, or an earlier peftlab made it. "
            f"`peftlab evaluate {folder.path} --predictions FILE` makes them from its model."
        )
    try:
        content = read_bytes(path)
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}. {WAY_OUT}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != facts["sha256"]:
        raise RunError(
            f"{path} is not the file that the run wrote: its sha256 is {found[:12]}…, and the record says "
            f"{str(facts['sha256'])[:12]}…. {WAY_OUT}"
        )
    try:
        return pq.read_table(io.BytesIO(content))
    except Exception as error:  # pyarrow has many kinds, and all of them end here
        raise RunError(f"{path} is no parquet file ({first_line(error)}). {WAY_OUT}") from error


def class_names(table: pyarrow.Table) -> list[str]:
    """The names that the outputs stand for, in the order of the probabilities; with several tasks ``task/name``."""
    said = (table.schema.metadata or {}).get(_NAMES)
    return [] if said is None else [str(name) for name in json.loads(said)]


def to_table(columns: Mapping[str, list[Any]], label_names: list[str]) -> pyarrow.Table:
    """The table of ``columns``: probabilities and values as float32, labels as they are, names by dictionary."""
    import pyarrow as pa

    types = {"row": pa.int64(), "probabilities": pa.list_(pa.float32()), "value": pa.float32()}
    arrays = {}
    for name, cells in columns.items():
        array = pa.array(cells, type=types.get(name))
        repeats = name in ("task", "gold", "predicted") and pa.types.is_string(array.type)
        arrays[name] = array.dictionary_encode() if repeats else array
    return pa.table(arrays).replace_schema_metadata({_NAMES: json.dumps(label_names)})


def as_bytes(table: pyarrow.Table) -> bytes:
    """A parquet file of ``table``; the same table gives the same bytes."""
    import pyarrow.parquet as pq

    stream = io.BytesIO()
    pq.write_table(table, stream, compression="zstd")
    return stream.getvalue()
