"""Caches are believed only where they are whole, and only of the file that they were made of."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from pathlib import Path

import pytest
import torch

from peftlab import remembered
from peftlab.backbones import gguf
from peftlab.backbones.glove import cached_glove
from peftlab.files import cache_folder
from peftlab.records import identity
from peftlab.records.identity import content_sha256


def sha256_of(*files: Path) -> str:
    """As the key has it: over the digests of the files."""
    whole = hashlib.sha256()
    for file in files:
        whole.update(hashlib.sha256(file.read_bytes()).digest())
    return whole.hexdigest()


@pytest.fixture(params=["small", "large"])
def file(request: pytest.FixtureRequest, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file, hashed each time or remembered."""
    if request.param == "large":
        monkeypatch.setattr(identity, "SMALL_FILES", 0)
    monkeypatch.setattr(remembered, "SETTLED_SECONDS", -1.0)
    path = scratch / "data.csv"
    path.write_text("text,label\na,pos\n")
    return path


def test_other_content_of_the_same_size_and_time(file: Path) -> None:
    """As ``cp -p``, ``rsync -t`` and ``tar`` leave it."""
    before, stat = content_sha256([file]), file.stat()
    assert before == sha256_of(file) == content_sha256([file])
    file.write_text("text,label\na,neg\n")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert content_sha256([file]) == sha256_of(file) != before


def test_another_file_under_the_name(file: Path) -> None:
    before, stat = content_sha256([file]), file.stat()
    other = file.with_name("other.csv")
    other.write_text("text,label\na,neg\n")
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.replace(file)
    assert content_sha256([file]) == sha256_of(file) != before


@pytest.mark.parametrize("damage", [b"\0" * 64, b"", b"0" * 64, b"flip"])
def test_a_damaged_digest_is_not_believed(file: Path, damage: bytes) -> None:
    before = content_sha256([file])
    for cached in (cache_folder() / "digests").glob("*"):
        content = bytearray(cached.read_bytes())
        content[-1] ^= 1
        cached.write_bytes(bytes(content) if damage == b"flip" else damage)
    assert content_sha256([file]) == before


def test_what_has_just_changed_is_not_remembered(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second change within one tick of the file system's clock could not be told."""
    monkeypatch.setattr(identity, "SMALL_FILES", 0)
    path = scratch / "data.csv"
    path.write_text("a")
    content_sha256([path])
    assert not list((cache_folder() / "digests").glob("*"))
    later = time.time() + 60
    monkeypatch.setattr(time, "time", lambda: later)
    content_sha256([path])
    assert len(list((cache_folder() / "digests").glob("*"))) == 1


def test_damaged_vectors_are_read_again(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "SETTLED_SECONDS", -1.0)
    path = scratch / "glove.txt"
    path.write_text("good 1.5 2\nbad 3 4\n")
    wanted, right = {"good": 0, "bad": 1}, torch.tensor([[1.5, 2.0], [3.0, 4.0]])
    for _ in range(2):
        into = torch.zeros(2, 2)
        assert cached_glove(path, 2, wanted, into) == 2
        assert torch.equal(into, right)
        (cached,) = (cache_folder() / "glove").glob("*")
    data = bytearray(cached.read_bytes())
    data[-2] ^= 0x40
    cached.write_bytes(data)
    into = torch.zeros(2, 2)
    cached_glove(path, 2, wanted, into)
    assert torch.equal(into, right)


def test_damaged_converted_weights_are_converted_again(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(file: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"weights")

    monkeypatch.setattr(gguf, "_convert", convert)
    monkeypatch.setattr(gguf.importlib.util, "find_spec", lambda name: True)
    folder = gguf.dequantized(scratch / "m.gguf", "a" * 64)
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    assert gguf.dequantized(scratch / "m.gguf", "a" * 64) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp, "it is whole, and kept"
    for name in ("model.safetensors", "complete.json", "config.json"):
        (folder / name).write_bytes(b"weighty")
        gguf.dequantized(scratch / "m.gguf", "a" * 64)
        assert (folder / "model.safetensors").read_bytes() == b"weights"
    shutil.rmtree(folder)
