"""Reading a large file takes the memory of its texts, and not of several copies of the file."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from peftlab.data import readers
from peftlab.data.readers import read_table
from peftlab.errors import DataError

ROWS, LENGTH = 4_000, 2_000


def _texts() -> list[str]:
    return [f"{row:06d}" + "x" * (LENGTH - 6) for row in range(ROWS)]


def _csv(file: Path, quote: str = "") -> None:
    lines = (f"{quote}{text}{quote},{'pos' if row % 2 else 'neg'}\n" for row, text in enumerate(_texts()))
    file.write_text("text,label\n" + "".join(lines), encoding="utf-8")


def _jsonl(file: Path) -> None:
    lines = (json.dumps({"text": text, "label": row % 2, "more": "y" * 500}) for row, text in enumerate(_texts()))
    file.write_text("\n".join(lines), encoding="utf-8")


def _parquet(file: Path) -> None:
    pq.write_table(
        pa.table({"text": _texts(), "label": [row % 2 for row in range(ROWS)]}), file, row_group_size=ROWS // 8
    )


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("plain.csv", _csv),
        ("quoted.csv", lambda file: _csv(file, '"')),
        ("one.jsonl", _jsonl),
        ("one.parquet", _parquet),
    ],
)
def test_memory_is_that_of_the_texts(tmp_path: Path, name: str, write: Callable[[Path], None]) -> None:
    file = tmp_path / name
    write(file)
    tracemalloc.start()
    try:
        table = read_table(file)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert table.texts == _texts()
    assert len(table.labels) == ROWS
    texts = ROWS * LENGTH
    assert kept < 1.2 * texts
    assert peak < 1.6 * texts, f"{peak / texts:.2f} times the texts"


@pytest.mark.parametrize("piece", [1, 2, 3, 19, 20, 64])
def test_characters_and_lines_are_whole_over_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(readers, "_PIECE", piece)
    file = tmp_path / "one.csv"
    whole = "\N{BYTE ORDER MARK}text,label\näöü €,pos\n\N{GRINNING FACE},neg\n".encode()
    file.write_bytes(whole)
    assert read_table(file).texts == ["äöü €", "\N{GRINNING FACE}"]
    file.write_bytes(whole + "é".encode()[:1])  # cut at the end: 41 bytes, so that pieces of 1 end with it
    with pytest.raises(DataError, match=r"line 4, byte \d+: 0xC3 is not UTF-8"):
        read_table(file)
    file.write_bytes(whole + b"a\0,pos\n")
    with pytest.raises(DataError, match=r"line 4, byte \d+: a NUL byte"):
        read_table(file)
