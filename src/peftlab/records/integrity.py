"""Whether a record still is what was written: its checksum, and the hashes of the files beside it. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peftlab.errors import RunError
from peftlab.reading import read_bytes

ADAPTER = "adapter.safetensors"

PREDICTIONS = "predictions.parquet"
"""What was predicted of each test row; runs of earlier versions have none, and no model is made of it."""

TEXT = "text_sha256"
"""Field of a record: the sha256 of its file's bytes before this line. Those of earlier versions have none."""

_END = "\n}\n"
_LAST_LINES = re.compile(rf',\n  "{TEXT}": "([0-9a-f]{{64}})",\n  "checksum": "[0-9a-f]{{64}}"\n}}\n\Z'.encode())
_LONGEST_END = 256
"""Bytes that the last lines have at most."""

HASHED = ("config.yaml", "metrics.csv", "adapter.json", ADAPTER)
"""Files whose sha256 the record of a finished run has; the records of earlier versions have only the adapter's."""


def record_checksum(record: dict[str, Any]) -> str:
    """sha256 over all of ``record`` but its checksum, whatever the order and spacing in the file."""
    return _checksum(json.loads(json.dumps(record)))  # what a reader will find: lists for tuples, text for keys


def record_text(record: dict[str, Any]) -> str:
    """``record`` as its file has it, with two checksums at its end.

    That of the values is true however somebody lays the file out. That of the bytes before it spares writing all
    values again to know it: ten thousand records are read at once.
    """
    values = {name: value for name, value in record.items() if name not in (TEXT, "checksum")}
    text = _written(values).removesuffix(_END)
    values[TEXT] = hashlib.sha256(text.encode()).hexdigest()
    return _written(values | {"checksum": record_checksum(values)})


def untouched(text: bytes) -> bool:
    """Whether ``text`` is to the byte what :func:`record_text` wrote; if not, its values may still be the same."""
    end = _LAST_LINES.search(text, max(0, len(text) - _LONGEST_END))
    return end is not None and hashlib.sha256(text[: end.start()]).hexdigest().encode() == end[1]


def _written(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _checksum(read: dict[str, Any]) -> str:
    """:func:`record_checksum` of what was read from JSON."""
    values = {name: value for name, value in read.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def require_as_recorded(folder: Path, record: dict[str, Any]) -> list[str]:
    """Compare the files of a finished run, which its model is made of, with what its record says of them.

    Args:
        folder: the run's.
        record: its own.

    Returns:
        files of which the record says nothing: a peftlab wrote it that did not hash them yet.

    Raises:
        RunError: naming the file that is not the run's, or saying that the record itself was changed.
    """
    if problem := broken_integrity(record):
        raise RunError(f"{folder / 'record.json'} {problem}. {WAY_OUT}")
    try:
        if lost := next(lost_hashes(record), None):
            raise RunError(f"{folder / 'record.json'} has lost its sha256 of {lost}. {WAY_OUT}")
        recorded = {str(name): str(facts["sha256"]) for name, facts in record["files"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{folder / 'record.json'} is not as peftlab writes it: files ({error}).") from error
    for name, sha256 in recorded.items():
        if name == PREDICTIONS:  # compared where it is read
            continue
        if Path(name).name != name:
            raise RunError(f"{folder / 'record.json'}: '{name}' is not the name of a file in the run's folder.")
        try:
            found = hashlib.sha256(read_bytes(folder / name)).hexdigest()
        except OSError as error:
            raise RunError(f"cannot read {folder / name}: {error.strerror or error}. {WAY_OUT}") from error
        if found != sha256:
            raise RunError(
                f"{folder / name} is not the file that the run wrote: its sha256 is {found[:12]}…, and the record "
                f"says {sha256[:12]}…. {WAY_OUT}"
            )
    return [name for name in HASHED if name not in recorded]


WAY_OUT = "Copy the run's folder anew from where it is whole, or train it again with the same command and force=true."


def broken_integrity(record: dict[str, Any]) -> str:
    """What says that ``record`` was changed after it was written; empty if nothing does, or if it cannot be known."""
    if "checksum" not in record:
        return "has lost its checksum: the peftlab that wrote it always writes one" if _always_hashed(record) else ""
    try:
        same = record["checksum"] == _checksum(record)
    except RecursionError:
        same = False  # read, but nested deeper than anything that peftlab writes
    return "" if same else "was changed after it was written: its checksum is that of other content"


def lost_hashes(record: dict[str, Any]) -> Iterator[str]:
    """Files of which a finished ``record`` must have the sha256, and has not."""
    if "checksum" in record or _always_hashed(record):
        small = ("vocabulary.json",) if record["backbone"].get("architecture") == "text_classifier" else ()
        yield from (name for name in (*HASHED, *small) if name not in record["files"])


def _always_hashed(record: dict[str, Any]) -> bool:
    """Whether ``record`` is of a peftlab that writes the checksum and all hashes, as told from the rest of it.

    Both came together, so that one of them asks for the other; the correlation of Matthews came after them.
    """
    try:
        test = record.get("metrics", {}).get("test", {})
        figures = [test, *test.get("tasks", {}).values()]
        return any(name != ADAPTER for name in record.get("files", ())) or any("matthews" in one for one in figures)
    except (AttributeError, TypeError):
        return True  # parts of another kind than any peftlab has written
