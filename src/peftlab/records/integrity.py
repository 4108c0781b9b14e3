"""Whether a record still is what was written: its checksum, and the hashes of the files beside it. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from peftlab.records.folder import record_checksum

ADAPTER = "adapter.safetensors"

HASHED = ("config.yaml", "metrics.csv", "adapter.json", ADAPTER)
"""Files whose sha256 the record of a finished run has; the records of earlier versions have only the adapter's."""


def broken_integrity(record: dict[str, Any]) -> str:
    """What says that ``record`` was changed after it was written; empty if nothing does, or if it cannot be known."""
    if "checksum" not in record:
        return "has lost its checksum: the peftlab that wrote it always writes one" if _always_hashed(record) else ""
    try:
        same = record["checksum"] == record_checksum(record)
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
