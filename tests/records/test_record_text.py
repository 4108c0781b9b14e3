"""A record's two checksums: of its bytes, quick, and of its values, true however they are laid out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from peftlab.errors import RunError
from peftlab.records.folder import RunFolder
from peftlab.records.integrity import record_checksum, record_text, untouched

RECORD: dict[str, Any] = {
    "schema_version": 1, "status": "finished", "name": "caf\u00e9", "metrics": {"test": {"loss": 1e-05}},
    "seeds": [1, 2],
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path)
    run.write_record(RECORD)
    return run


def test_what_was_written_is_read(folder: RunFolder) -> None:
    assert untouched(folder.record.read_bytes())
    read = folder.read_record()
    assert read is not None
    assert {name: read[name] for name in RECORD} == RECORD
    assert read["checksum"] == record_checksum(read), "whoever knows no checksum of bytes finds that of the values true"
    assert record_text(read) == record_text(RECORD), "written again it has its own, not those of before"


def test_no_byte_can_be_another(folder: RunFolder) -> None:
    """But those of the checksum of values, of which `verify` sees that they are not right."""
    text = folder.record.read_bytes()
    assert untouched(text)
    own = range(text.rindex(b'"\n}\n') - 64, text.rindex(b'"\n}\n'))
    for place in sorted({*range(len(text))} - {*own}):
        assert not untouched(text[:place] + bytes([text[place] ^ 1]) + text[place + 1 :])
    assert not untouched(text[:-1])
    assert not untouched(text + b"\n")
    assert not untouched(b"")


def test_laid_out_anew_it_is_the_same_record(folder: RunFolder) -> None:
    values = json.loads(folder.record.read_bytes())
    folder.record.write_text(json.dumps(dict(sorted(values.items()))), encoding="utf-8")
    assert not untouched(folder.record.read_bytes())
    assert folder.read_record() == values


def test_another_value_is_another_record(folder: RunFolder) -> None:
    text = folder.record.read_text(encoding="utf-8")
    folder.record.write_text(text.replace("1e-05", "1e-06"), encoding="utf-8")
    with pytest.raises(RunError, match="was changed after it was written"):
        folder.read_record()


def test_a_value_after_the_hash_of_the_bytes_is_seen(folder: RunFolder) -> None:
    """The last of two values of one name holds."""
    text = folder.record.read_text(encoding="utf-8")
    folder.record.write_text(text.removesuffix("\n}\n") + ',\n  "status": "failed"\n}\n', encoding="utf-8")
    with pytest.raises(RunError, match="was changed after it was written"):
        folder.read_record()
