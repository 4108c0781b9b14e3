"""Runs of a second that the tests of finished runs share."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from peftlab.cli import main
from tests.conftest import Peftlab

CLASSIFIER = (
    "backbone=text_classifier", "logger=none", "data=text_files", "data.batch_size=8", "optim=sgd", "optim.lr=0.5",
    "peft=lora", "peft.targets=[hidden]", "peft.rank=2", "trainer.max_epochs=3", "trainer.progress_bar=false",
    "trainer.threads=1", "trainer.keep_checkpoints=true",
)  # fmt: skip


@cache
def _trained_once() -> tuple[tempfile.TemporaryDirectory[str], str]:
    """A folder that holds one finished run of name ``t``, and the run's key; trained once a test process."""
    folder = tempfile.TemporaryDirectory(prefix="small-run")
    here = Path.cwd()
    shutil.copy("reviews.jsonl", folder.name)
    os.chdir(folder.name)
    try:
        assert main(["train", *CLASSIFIER, "data.path=reviews.jsonl", "name=t"]) == 0
    finally:
        os.chdir(here)
    (run,) = Path(folder.name).glob("outputs/t/*")
    return folder, run.name


def finished(reviews: Path) -> Path:
    """A copy of one finished run on ``reviews``, as ``outputs/t/<key>`` below the current folder."""
    assert reviews == Path.cwd() / "reviews.jsonl"
    folder, key = _trained_once()
    run = Path("outputs/t") / key
    shutil.copytree(Path(folder.name) / run, run)
    return run


def train(peftlab: Peftlab, reviews: Path, *more: str, name: str = "t") -> Path:
    """Train the small classifier on ``reviews``; its folder."""
    before = set(Path("outputs").glob(f"{name}/*"))
    result = peftlab("train", *CLASSIFIER, f"data.path={reviews}", f"name={name}", *more)
    assert result.status == 0, result.err
    (folder,) = set(Path("outputs").glob(f"{name}/*")) - before
    return folder


def record_of(folder: Path) -> Any:
    return json.loads((folder / "record.json").read_text())


def edit(folder: Path, change: Callable[[Any], object], *, sealed: bool = True) -> None:
    """Change record.json; ``sealed``: with a checksum that fits, as somebody who knows of it would."""
    from peftlab.records.integrity import record_checksum

    record = record_of(folder)
    change(record)
    if sealed and "checksum" in record:
        record["checksum"] = record_checksum(record)
    (folder / "record.json").write_text(json.dumps(record))


def set_at(path: str, value: Any) -> Callable[[Any], None]:
    """A change for :func:`edit`: ``value`` at the dotted ``path``."""

    def change(record: Any) -> None:
        *parents, last = path.split(".")
        for name in parents:
            record = record[int(name)] if isinstance(record, list) else record[name]
        record[last] = value

    return change


_HEAD = (
    "schema_version", "status", "name", "key", "config", "argv", "ended_at", "git", "versions", "hardware", "seeds",
)  # fmt: skip
"""What the record of a failed run has, beside its error."""


def failed(record: Any) -> None:
    """A change for :func:`edit`: the record that the same run leaves if it fails."""
    for name in set(record) - {*_HEAD, "checksum"}:
        del record[name]
    record |= {"status": "failed", "error": "RuntimeError: no"}


def found(peftlab: Peftlab, folder: Path | str, *options: str) -> dict[str, str]:
    """What differs, by what it is about; the exit status must say the same."""
    result = peftlab("verify", folder, "--json", *options)
    content = json.loads(result.out)
    (verdict,) = content["runs"]
    assert result.status == (1 if verdict["differences"] else 0), result.err
    return {one["about"]: one["said"] for one in verdict["differences"]}
