"""Reading the ``.wandb`` file that an offline run leaves: W&B's own records, in LevelDB's log format.

The file is a header of 7 bytes and then blocks of 32 KiB; a chunk is crc32 (4 bytes), length (2), type (1) and data,
and a record is one full chunk (1), or a first (2), any middle (3) and a last one (4). What is in a record is decoded by
wandb's own protobuf classes.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

HEADER, BLOCK, CHUNK_HEADER = 7, 32768, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class Written:
    """What one W&B run holds."""

    id: str = ""
    project: str = ""
    group: str = ""
    job_type: str = ""
    name: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None


def read(path: Path) -> Written:
    """The run in the ``.wandb`` file ``path``."""
    found = Written()
    for data in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            found.id, found.project, found.group = run.run_id, run.project, run.run_group
            found.job_type, found.name, found.tags = run.job_type, run.display_name, list(run.tags)
            found.config |= _items(run.config.update)
        elif kind == "config":
            found.config |= _items(record.config.update)
        elif kind == "history":
            found.history.append(_items(record.history.item))
        elif kind == "summary":
            found.summary |= _items(record.summary.update)
        elif kind == "exit":
            found.exit_code = record.exit.exit_code
    return found


def _items(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def _records(data: bytes) -> Iterator[bytes]:
    assert data[:4] == b":W&B"
    whole, position = b"", HEADER
    while position + CHUNK_HEADER <= len(data):
        if BLOCK - position % BLOCK < CHUNK_HEADER:  # the rest of a block that no chunk fits in
            position += BLOCK - position % BLOCK
            continue
        checksum, length, kind = struct.unpack_from("<IHB", data, position)
        chunk = data[position + CHUNK_HEADER : position + CHUNK_HEADER + length]
        assert zlib.crc32(bytes([kind]) + chunk) == checksum
        assert kind in (FULL, FIRST, MIDDLE, LAST)
        whole = chunk if kind in (FULL, FIRST) else whole + chunk
        if kind in (FULL, LAST):
            yield whole
        position += CHUNK_HEADER + length
