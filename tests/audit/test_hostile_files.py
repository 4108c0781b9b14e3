"""Files that were damaged, or made to harm, in the hands of each command: refused with the reason, or done without.

Nothing in them is executed: each carries code that would leave a file PWNED. Their table:
``python -m tests.audit.test_hostile_files``.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import safetensors.torch
import torch

from peftlab.training.checkpoint import AtomicCheckpointIO
from tests.conftest import Peftlab
from tests.runs.small_runs import CLASSIFIER, edit, finished, record_of

TRAIN = ("train", *CLASSIFIER, "data.path=reviews.jsonl", "name=t")
LORA = ("train", "backbone=tiny", "logger=none", "data=text_files", "data.path=reviews.jsonl", "data.max_length=48")


class Code:
    """Unpickled, it makes a file."""

    def __reduce__(self) -> Any:
        return open, ("PWNED", "w")


class Case(NamedTuple):
    """What is done to a finished run, and what a command then says."""

    put: Callable[[Path], object]
    words: tuple[str, ...]
    """``RUN`` stands for the folder of the run."""
    said: str
    status: int = 2


def unfinished(run: Path) -> Path:
    """As a run that was killed after its last epoch."""
    for name in ("record.json", "adapter.safetensors", "adapter.json", "predictions.parquet"):
        (run / name).unlink()
    return run / "checkpoints"


def pickled() -> bytes:
    file = io.BytesIO()
    torch.save({"state_dict": Code(), "history": [{"epoch": 0}]}, file)
    return file.getvalue()


def checkpoint_of_code(name: str) -> Callable[[Path], object]:
    return lambda run: (unfinished(run) / name).write_bytes(pickled())


def sealed_checkpoint_of_code(run: Path) -> None:
    """With the checksum that peftlab's own have."""
    content: Any = {"state_dict": Code(), "history": [{"epoch": 0}]}
    AtomicCheckpointIO().save_checkpoint(content, unfinished(run) / "last.ckpt")


def replaced(name: str, content: bytes, *, recorded: bool = True) -> Callable[[Path], object]:
    """Another content; ``recorded``: its hash stands in the record, as somebody who knows of it would see to."""

    def put(run: Path) -> None:
        (run / name).write_bytes(content)
        facts = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        if recorded:
            edit(run, lambda record: record["files"].update({name: facts}))

    return put


def header(text: str, length: int | None = None) -> bytes:
    """A safetensors file with this header, or with another length than it has."""
    return (len(text) if length is None else length).to_bytes(8, "little") + text.encode()


def as_link(name: str) -> Callable[[Path], object]:
    def put(run: Path) -> None:
        (run / name).unlink()
        (run / name).symlink_to("/etc/hostname")

    return put


def as_pipe(name: str) -> Callable[[Path], object]:
    def put(run: Path) -> None:
        (run / name).unlink()
        os.mkfifo(run / name)

    return put


def folder_for_links(run: Path) -> None:
    unfinished(run)
    shutil.move(run / "checkpoints", "elsewhere")
    (run / "checkpoints").symlink_to(Path("elsewhere").absolute())


def lock_of_somebody(run: Path) -> None:
    (run / "record.json").unlink()
    (run / ".lock").write_text("my diary\n")


def lock_is_link(run: Path) -> None:
    (run / "record.json").unlink()
    (run / ".lock").unlink(missing_ok=True)
    Path("diary").write_text("mine\n")
    (run / ".lock").symlink_to(Path("diary").absolute())


def name_is_link(run: Path) -> None:
    Path("elsewhere").mkdir()
    Path("outputs/away").symlink_to(Path("elsewhere").absolute())


def record_names_a_file_elsewhere(run: Path) -> None:
    edit(run, lambda record: record["files"].update({"../../../etc/passwd": {"bytes": 1, "sha256": "0" * 64}}))


def config_of_code(run: Path) -> None:
    text = (run / "config.yaml").read_bytes() + b"evil: !!python/object/apply:builtins.open [PWNED, w]\n"
    replaced("config.yaml", text)(run)


def foreign_class(run: Path) -> None:
    Path("theirs.py").write_text("open('PWNED', 'w')\n")
    text = (run / "config.yaml").read_text().replace("peftlab.peft.lora.LoRA", "theirs.Method")
    replaced("config.yaml", text.encode())(run)


def sweep_file(text: str) -> Callable[[Path], object]:
    return lambda run: Path("theirs.yaml").write_text(text)


def sweep_note_of_elsewhere(run: Path) -> None:
    arm = {"id": "x", "label": "x", "row": True, "runs": {"0": "../../../../etc"}, "logs": {"0": "../../../etc/passwd"}}
    (run.parent / "sweep.json").write_text(json.dumps({"format": 1, "cells": [arm], "columns": [], "seeds": [0]}))


def backbone(files: dict[str, bytes]) -> Callable[[Path], object]:
    def put(run: Path) -> None:
        Path("model").mkdir()
        for name, content in files.items():
            Path("model", name).write_bytes(content)

    return put


def adapter_of_hf_peft(files: dict[str, bytes]) -> Callable[[Path], object]:
    def put(run: Path) -> None:
        Path("adapter").mkdir()
        for name, content in files.items():
            Path("adapter", name).write_bytes(content)

    return put


def tokens_of_code(run: Path) -> None:
    """In the cache, an array of objects, with the checksum that belongs to it."""
    cached = [path.parent for path in Path(os.environ["PEFTLAB_CACHE"]).rglob("complete.json")]
    for folder in (folder for folder in cached if (folder / "ids.npy").exists()):
        rows = json.loads((folder / "complete.json").read_text())["rows"]
        np.save(folder / "ids.npy", np.array([Code()], dtype=object), allow_pickle=True)
        hashes = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("ids.npy", "offsets.npy")}
        (folder / "complete.json").write_text(json.dumps({"rows": rows, "sha256": hashes}))


def nothing(run: Path) -> None:
    """The file is in what is typed."""


VOCABULARY = b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nfilm\n"
REMOTE_CODE = json.dumps({
    "model_type": "theirs",
    "auto_map": {"AutoConfig": "code.Config", "AutoModelForSequenceClassification": "code.Model"},
}).encode()  # fmt: skip
SWEEP = f"""
name: theirs
title: t
source: s
command: c
cost: c
selection: s
expected: []
seeds: [0]
metric: metrics.test.accuracy
overrides: {json.dumps([*CLASSIFIER, "data.path=reviews.jsonl"])}
cells: [{{id: one, overrides: [optim.lr=0.2]}}]
columns: [{{title: accuracy, value: metrics.test.accuracy}}]
"""
LAST = "last.ckpt is damaged"
BAD_ADAPTER = "cannot read outputs/t/.*/adapter.safetensors"
CASES: dict[str, Case] = {
    "checkpoint: last.ckpt runs code": Case(checkpoint_of_code("last.ckpt"), TRAIN, LAST, 0),
    "checkpoint: best.ckpt runs code": Case(checkpoint_of_code("best.ckpt"), TRAIN, "best.ckpt is damaged", 0),
    "checkpoint: one inside an epoch runs code": Case(
        checkpoint_of_code("epoch-9-batch-1.ckpt"),
        TRAIN,
        "epoch-9-batch-1.ckpt is damaged.*last.ckpt is whole, and the run goes on from it",
        0,
    ),
    "checkpoint: runs code, sealed as ours": Case(sealed_checkpoint_of_code, TRAIN, LAST, 0),
    "checkpoint: bare pickle": Case(
        lambda run: (unfinished(run) / "last.ckpt").write_bytes(pickle.dumps(Code())), TRAIN, LAST, 0
    ),
    "checkpoint: a named pipe": Case(lambda run: as_pipe("last.ckpt")(unfinished(run)), TRAIN, LAST, 0),
    "checkpoint: the folder is a link": Case(folder_for_links, TRAIN, "checkpoints is a link to"),
    **{
        f"adapter: a pickle, recorded: {words[0]}": Case(
            replaced("adapter.safetensors", pickled()), (words[0], "RUN", *words[1:]), BAD_ADAPTER, status
        )
        for *words, status in (
            ("predict", "--text", "x", 2),
            ("evaluate", 2),
            ("inspect", 2),
        )
    },
    "adapter: a pickle, recorded: verify --rerun-eval": Case(
        replaced("adapter.safetensors", pickled()), ("verify", "RUN", "--rerun-eval"), "adapter.safetensors", 1
    ),
    "adapter: a pickle, recorded: backbone.from_run": Case(
        replaced("adapter.safetensors", pickled()), (*TRAIN, "backbone.from_run=RUN"), BAD_ADAPTER
    ),
    "adapter: other bytes than recorded": Case(
        replaced("adapter.safetensors", pickled(), recorded=False),
        ("predict", "RUN", "--text", "x"),
        "is not the file that the run wrote",
    ),
    "adapter: a header without end": Case(
        replaced("adapter.safetensors", header("{}", 1 << 62)), ("predict", "RUN", "--text", "x"), BAD_ADAPTER
    ),
    "adapter: tensors outside of the file": Case(
        replaced("adapter.safetensors", header('{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}')),
        ("predict", "RUN", "--text", "x"),
        BAD_ADAPTER,
    ),
    "adapter: of another model": Case(
        replaced("adapter.safetensors", safetensors.torch.save({"a": torch.zeros(2)})),
        ("predict", "RUN", "--text", "x"),
        "the adapter does not fit",
    ),
    "record: names a file outside of its folder": Case(
        record_names_a_file_elsewhere, ("predict", "RUN", "--text", "x"), "is not the name of a file in the run"
    ),
    "record: a link to another file": Case(as_link("record.json"), ("verify", "RUN"), "record.json is damaged", 1),
    "config: a tag that calls a function": Case(config_of_code, ("predict", "RUN", "--text", "x"), "config.yaml"),
    "config: a class of a module nearby": Case(
        foreign_class, ("predict", "RUN", "--text", "x"), "is no module of peftlab's config classes"
    ),
    "predictions: a pickle": Case(
        replaced("predictions.parquet", pickle.dumps(Code()), recorded=False),
        ("verify", "RUN"),
        "predictions.parquet",
        1,
    ),
    "lock: somebody's own file": Case(lock_of_somebody, TRAIN, "is no lock of peftlab's"),
    "lock: a link": Case(lock_is_link, TRAIN, "is a link, and peftlab locks none through it"),
    "sweep file: a tag that calls a function": Case(
        sweep_file("name: !!python/object/apply:builtins.open [PWNED, w]\n"), ("sweep", "theirs.yaml"), "theirs.yaml"
    ),
    "sweep file: aliases without end": Case(
        sweep_file(
            "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
            + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdef", "bcdefg", strict=True))
        ),
        ("sweep", "theirs.yaml"),
        "more than 100,000 values",
    ),
    "sweep file: a name outside of the folder": Case(
        sweep_file(SWEEP.replace("name: theirs", "name: ../../theirs")), ("sweep", "theirs.yaml"), "name"
    ),
    "sweep.json: names places outside of the folder": Case(
        sweep_note_of_elsewhere, ("report", "outputs", "--to", "made", "--format", "csv"), "sweep.json", 1
    ),
    "cache: tokens that run code": Case(tokens_of_code, (*LORA, "seed=1"), "", 0),
    "model folder: pickled weights": Case(
        backbone({"config.json": b'{"model_type": "bert"}', "pytorch_model.bin": pickled(), "vocab.txt": VOCABULARY}),
        (*LORA[:1], "backbone=hf", "backbone.name_or_path=model", *LORA[2:]),
        "only pickled weights",
    ),
    "model folder: code of its own": Case(
        backbone({"config.json": REMOTE_CODE, "code.py": b"open('PWNED', 'w')\n", "model.safetensors": header("{}")}),
        (*LORA[:1], "backbone=hf", "backbone.name_or_path=model", *LORA[2:]),
        "model",
    ),
    "adapter of HF peft: a pickle": Case(
        adapter_of_hf_peft({"adapter_config.json": b'{"peft_type": "LORA"}', "adapter_model.bin": pickled()}),
        (*LORA, "peft=import", "peft.path=adapter"),
        "only adapter_model.bin, a pickle",
    ),
    "name: a link that leaves the folder": Case(
        name_is_link, (*TRAIN[:-1], "name=away", "seed=3"), "outputs/away is a link to"
    ),
    **{
        f"name: {shown}": Case(nothing, (*TRAIN[:-1], f"name={name}"), "name=")
        for shown, name in {
            "../../x": "../../x", "absolute": "/tmp/x", "dots": "..", "hidden": ".x", "a line break": "'a\nb'",
            "NUL": "'a\0b'", "a tilde": "'~root'", "too long": "x" * 300,
        }.items()
    },
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_or_done_without(peftlab: Peftlab, reviews: Path, name: str) -> None:
    case, run = CASES[name], finished(reviews)
    before = {path: path.read_bytes() for path in Path.cwd().rglob("reviews.jsonl")}
    whole = (run / "adapter.safetensors").read_bytes()
    if case.put is tokens_of_code:
        assert peftlab(*LORA, "name=before").status == 0
    case.put(run)
    result = peftlab(*(word.replace("RUN", str(run)) for word in case.words))
    said = result.out + result.err
    assert result.status == case.status, said
    assert "Traceback" not in said
    assert re.search(case.said, said.replace("\n", " ")), said
    assert not Path("PWNED").exists()
    if case.words is TRAIN and case.status == 0:
        assert (run / "adapter.safetensors").read_bytes() == whole, "made anew, or from the earlier one: the same bits"
        assert record_of(run)["status"] == "finished"
    assert {path: path.read_bytes() for path in before} == before
    assert {path.name for path in Path.cwd().iterdir()} <= ALLOWED
    assert case.put is not name_is_link or not list(Path("elsewhere").iterdir())


ALLOWED = {
    "reviews.jsonl", "outputs", ".cache", "theirs.py", "theirs.yaml", "model", "adapter", "made", "elsewhere", "diary"
}  # fmt: skip
"""What the cases themselves put beside the run's folder, and where reports go: no name has left it."""


def table() -> str:
    """A row a case, in Markdown."""
    lines = ["| damaged or hostile | command | what is said | exit status |", "| --- | --- | --- | ---: |"]
    for name, case in CASES.items():
        said = case.said.replace("|", "/").replace(".*", " … ") or "(made anew)"
        lines.append(f"| {name} | {case.words[0]} | {said} | {case.status} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
