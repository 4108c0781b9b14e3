"""``peftlab verify``: an untouched run is as recorded, and whatever is changed of it is found and named."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from peftlab.audit.consistency import inconsistencies
from peftlab.audit.tensors import read_tensors
from peftlab.objectives.base import objective
from peftlab.training.config import TrainerConfig
from tests.alone import peftlab_alone
from tests.conftest import Peftlab, run_folder
from tests.runs.small_runs import CLASSIFIER, edit, failed, finished, found, record_of, set_at, train


@pytest.fixture
def run(reviews: Path) -> Path:
    return finished(reviews)


def test_an_untouched_run_is_as_recorded(peftlab: Peftlab, run: Path) -> None:
    result = peftlab("verify", run, "--data", "--rerun-eval")
    assert result.status == 0, result.out
    assert result.out.splitlines() == [f"ok         {run}", "1 run: 1 as recorded"]
    assert set(record_of(run)["files"]) == {
        "config.yaml", "metrics.csv", "adapter.json", "adapter.safetensors", "vocabulary.json", "predictions.parquet",
    }  # fmt: skip


# (where in the record, the value put there, what is named)
EDITED: list[tuple[str, Any, str]] = [
    ("metrics.test.accuracy", 0.99, "metrics.test.accuracy"),
    ("metrics.test.accuracy", 1.2, "metrics.test.accuracy"),
    ("metrics.test.macro_f1", 0.99, "metrics.test.macro_f1"),
    ("metrics.test.rows", 23, "metrics.test.rows"),
    ("metrics.test.per_class.f1.good", 0.987654, "metrics.test.per_class.f1.good"),
    ("metrics.test.per_class.accuracy.good", 0.987654, "metrics.test.per_class.accuracy"),
    ("metrics.validation.accuracy", 0.99, "metrics.validation.accuracy"),
    ("metrics.train.loss", 0.1, "metrics.train.loss"),
    ("history.0.validation/accuracy", 0.123, "metrics.csv"),
    ("history.1.step", 1, "history"),
    ("history.1.epoch", 7, "history"),
    ("selection.epoch", 99, "selection.epoch"),
    ("selection.rule", "last epoch", "selection.rule"),
    ("selection.validation/accuracy", 0.123, "selection.validation/accuracy"),
    ("data.rows.test", 25, "metrics.test.rows"),
    ("data.max_length", 3, "record.json"),  # nothing but the checksum can tell
    ("config.peft.rank", 3, "config.yaml"),
    ("config.seed", 5, "key"),
    ("config.peft.rnak", 3, "config"),
    ("key", "0123456789ab", "key"),
    ("name", "other", "name"),
    ("seeds.seed", 9, "seeds"),
    ("backbone.fingerprint", "0" * 64, "adapter.json"),
    ("parameters.stored", 1, "adapter.safetensors"),
    ("parameters.total", 1, "parameters"),
    ("parameters.trainable", 457, "parameters.trainable"),
    ("parameters.trainable_without_head", 7, "parameters.trainable"),
    ("parameters.adapter_bytes", 7, "parameters.adapter_bytes"),
    ("backbone.parameters", 7, "parameters.total"),
    ("backbone.frozen_unchanged", False, "backbone.frozen_unchanged"),
    ("timing.train_seconds", 0.5, "timing.train_seconds"),
    ("timing.train_samples_per_second", 1e6, "timing.train_samples_per_second"),
    ("timing.evaluation_samples_per_second", 1e6, "timing.evaluation_samples_per_second"),
    ("status", "failed", "status"),
    ("status", "done", "status"),
    ("files.adapter.safetensors", None, "record.json"),
    ("schema_version", 2, "record.json"),
    ("metrics", {}, "record.json"),
]


@pytest.mark.parametrize(("path", "value", "about"), EDITED, ids=[f"{path}={value}" for path, value, _ in EDITED])
def test_an_edited_record(peftlab: Peftlab, run: Path, path: str, value: Any, about: str) -> None:
    if path.startswith("files."):
        edit(run, lambda record: record.pop("files"))
    else:
        edit(run, set_at(path, value), sealed=path != "data.max_length")
    assert about in found(peftlab, run)


def test_every_edit_breaks_the_checksum(peftlab: Peftlab, run: Path) -> None:
    assert found(peftlab, run) == {}
    edit(run, set_at("metrics.test.loss", 0.1), sealed=False)
    assert "changed after it was written" in found(peftlab, run)["record.json"]
    edit(run, set_at("metrics.test.loss", 0.1), sealed=True)
    assert found(peftlab, run) == {}, "no other figure says what a loss must be"
    assert set(found(peftlab, run, "--rerun-eval")) == {"metrics.test.loss"}


def test_the_chosen_epoch_is_the_best_by_its_rule(run: Path) -> None:
    record = record_of(run)
    for number, accuracy in enumerate((0.5, 0.75, 0.75)):
        record["history"][number]["validation/accuracy"] = accuracy
    for epoch, right in ((0, False), (1, True), (2, False)):  # of equals the first
        record["selection"] |= {"epoch": epoch, "validation/accuracy": record["history"][epoch]["validation/accuracy"]}
        about = {finding.about for finding in inconsistencies(record, TrainerConfig(), objective("classification"))}
        assert ("selection.epoch" not in about) == right
    last = TrainerConfig(select="last")
    record["selection"] |= {"rule": "last epoch"}
    assert "selection.epoch" not in {
        finding.about for finding in inconsistencies(record, last, objective("classification"))
    }


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 0x10
    path.write_bytes(data)


# (file, what is done to it)
DAMAGED: list[tuple[str, Callable[[Path], object]]] = [
    ("record.json", truncate),
    ("record.json", Path.unlink),
    ("record.json", lambda path: path.write_text("[]")),
    ("adapter.safetensors", flip),
    ("adapter.safetensors", truncate),
    ("adapter.safetensors", Path.unlink),
    ("adapter.json", Path.unlink),
    ("adapter.json", lambda path: path.write_text("[]")),
    ("adapter.json", lambda path: path.write_text(path.read_text().replace('"rank": 2', '"rank": 3'))),
    ("metrics.csv", Path.unlink),
    ("metrics.csv", truncate),
    ("metrics.csv", lambda path: path.write_text(path.read_text().replace("\n1,", "\n5,"))),
    ("config.yaml", Path.unlink),
    ("config.yaml", lambda path: path.write_text(path.read_text().replace("rank: 2", "rank: 4"))),
    ("config.yaml", lambda path: path.write_text(path.read_text() + "# a remark\n")),
    ("config.yaml", lambda path: path.write_text(": :")),
    ("vocabulary.json", Path.unlink),
    ("vocabulary.json", flip),
    ("curves.png", truncate),
    ("curves.png", lambda path: path.write_text("a picture")),
    ("checkpoints/best.ckpt", lambda path: path.write_bytes(b"")),
    ("checkpoints/last.ckpt", lambda path: path.write_bytes(path.read_bytes()[:500])),
]


@pytest.mark.parametrize("number", range(len(DAMAGED)), ids=[f"{name}-{n}" for n, (name, _) in enumerate(DAMAGED)])
def test_a_damaged_file(peftlab: Peftlab, run: Path, number: int) -> None:
    name, damage = DAMAGED[number]
    damage(run / name)
    assert set(found(peftlab, run)) == {name}


def test_checkpoints_and_the_picture_may_be_deleted_to_save_space(peftlab: Peftlab, run: Path) -> None:
    (run / "curves.png").unlink()
    (run / "checkpoints/best.ckpt").unlink()
    result = peftlab("verify", run)
    assert result.status == 0
    lines = result.out.splitlines()
    assert lines[:2] == [f"ok         {run}", "1 run: 1 as recorded"]
    assert lines[2:] == [
        "not checked:",
        "  curves.png: not there; no result needs it",
        "  checkpoints/best.ckpt: not there; no result needs it",
    ]
    shutil.rmtree(run / "checkpoints")
    assert "checkpoints/last.ckpt: not there" in peftlab("verify", run, "--rerun-eval").out
    assert found(peftlab, run) == {}


def test_numbers_that_are_not_finite(peftlab: Peftlab, run: Path) -> None:
    import hashlib

    file = run / "adapter.safetensors"
    state = load_file(file)
    with safe_open(file, "pt") as opened:
        header = opened.metadata()
    name = next(iter(sorted(state)))
    state[name].flatten()[0] = float("inf")
    save_file(state, file, metadata=header)

    def hashed(record: Any) -> None:
        record["files"]["adapter.safetensors"]["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()

    edit(run, hashed)
    assert found(peftlab, run) == {
        "adapter.safetensors": f"tensor '{name}' has values that are not finite, though the test loss is"
    }
    edit(run, set_at("metrics.test.loss", float("nan")))  # a training that diverged, and a record that says so
    result = peftlab("verify", run)
    assert result.status == 0
    assert "1 run: 1 diverged (as recorded)" in result.out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
def test_tensors_are_read_as_torch_reads_them(scratch: Path, dtype: torch.dtype) -> None:
    values = (torch.arange(24).reshape(2, 3, 4) * 7 - 40).to(dtype)
    save_file({"some.name": values, "empty": torch.zeros(0, 3)}, scratch / "some.safetensors")
    read = read_tensors(scratch / "some.safetensors")
    expected = values.float().numpy() if dtype == torch.bfloat16 else values.numpy()
    assert read["some.name"].shape == (2, 3, 4)
    np.testing.assert_array_equal(read["some.name"], expected)
    assert read["empty"].shape == (0, 3)


def test_a_renamed_folder(peftlab: Peftlab, run: Path) -> None:
    renamed = run.with_name("abc")
    run.rename(renamed)
    assert found(peftlab, renamed) == {"key": f"the record is of run {run.name}, but the folder is called abc"}


def test_the_model_is_counted_again(peftlab: Peftlab, run: Path) -> None:
    edit(run, lambda record: record["parameters"].update(adapted=1))
    assert found(peftlab, run) == {}, "only the shapes of the layers say how large they are"
    assert set(found(peftlab, run, "--rerun-eval")) == {"parameters.adapted"}


def test_data_that_changed(peftlab: Peftlab, run: Path, reviews: Path) -> None:
    assert found(peftlab, run, "--data") == {}
    reviews.write_text(reviews.read_text().replace("great", "gr8"))
    assert "a file it reads" in found(peftlab, run)["key"]
    reviews.unlink()
    result = peftlab("verify", run)
    assert result.status == 0
    assert "key: needs files that are not here" in result.out
    assert "cannot be read here" in found(peftlab, run, "--data")["data"]


def test_data_hash_in_an_edited_record(peftlab: Peftlab, run: Path) -> None:
    edit(run, set_at("data.hash", "0" * 64))
    assert found(peftlab, run) == {}
    assert set(found(peftlab, run, "--data")) == {"data.hash"}


def test_a_difference_of_the_test_again_says_what_else_is_other(peftlab: Peftlab, run: Path) -> None:
    def other(record: Any) -> None:
        record["metrics"]["test"]["loss"] += 1e-9
        record["versions"]["torch"] = "1.0"

    edit(run, other)
    result = peftlab("verify", run, "--rerun-eval")
    assert result.status == 1
    assert "metrics.test.loss: tested again it is" in result.out
    assert "torch: 1.0 in the record" in result.out


def test_many_runs_and_what_is_not_finished(peftlab: Peftlab, run: Path, reviews: Path, scratch: Path) -> None:
    for seed in (1, 2, 3):
        train(peftlab, reviews, f"seed={seed}", name="more")
    one, two, three = sorted(Path("outputs/more").iterdir())
    flip(one / "adapter.safetensors")
    edit(two, failed)
    for path in three.glob("*"):
        if path.is_file() and path.name not in (".lock", "config.yaml"):
            path.unlink()
    logged = run / "logs" / "wandb" / "files"
    logged.mkdir(parents=True)
    (logged / "config.yaml").write_text("a: 1\n")
    result = peftlab("verify", "outputs")
    assert result.status == 1
    assert f"differs    {one}\n    adapter.safetensors: has another content" in result.out
    assert f"unfinished {two}: failed: RuntimeError: no" in result.out
    assert f"unfinished {three}: no record yet" in result.out
    assert "4 runs: 1 as recorded, 1 not as recorded, 2 unfinished" in result.out
    twice = peftlab("verify", "outputs/t", run, f"{run}/record.json", "outputs/more/../t")
    assert "1 run: 1 as recorded" in twice.out


def test_a_run_and_the_one_it_started_from_may_be_copied_together(peftlab: Peftlab, run: Path, reviews: Path) -> None:
    later = train(peftlab, reviews, f"backbone.from_run={run}")
    moved = Path("copied")
    shutil.move("outputs/t", moved)
    result = peftlab("verify", moved, "--rerun-eval")
    assert result.out.splitlines()[-1] == "2 runs: 2 as recorded"
    shutil.rmtree(moved / run.name)
    alone = peftlab("verify", moved / later.name)
    assert alone.status == 0
    assert "key: needs files that are not here: backbone.from_run" in alone.out


def test_a_run_on_several_tasks(peftlab: Peftlab, reviews: Path, scratch: Path) -> None:
    rows = (f"the {('match', 'shares', 'orbit')[n % 3]} {n},{('sport', 'trade', 'space')[n % 3]}\n" for n in range(60))
    (scratch / "topics.csv").write_text("text,label\n" + "".join(rows))
    tasks = "[{task: films, name: text_files, path: reviews.jsonl}, {task: topics, name: text_files, path: topics.csv}]"
    result = peftlab(
        "train", *(o for o in CLASSIFIER if o != "data=text_files"), "data=multitask", f"data.tasks={tasks}"
    )
    assert result.status == 0, result.err
    run = run_folder()
    assert peftlab("verify", run, "--data", "--rerun-eval").out.splitlines()[-1] == "1 run: 1 as recorded"
    edit(run, set_at("metrics.test.tasks.topics.accuracy", 0.123))
    assert set(found(peftlab, run)) == {"metrics.test.tasks.topics.accuracy", "metrics.test.accuracy"}
    csv = run / "metrics.csv"
    csv.write_text(csv.read_text().replace("validation/films/loss", "validation/films/lost"))
    assert "validation/films/loss" in found(peftlab, run)["metrics.csv"]


def test_it_imports_no_torch(run: Path) -> None:
    done = peftlab_alone("verify", "outputs")
    assert "1 run: 1 as recorded" in done.out
    assert done.status == 0
    assert done.heavy == []


def test_wrong_input(peftlab: Peftlab, scratch: Path) -> None:
    (scratch / "empty" / ".hidden").mkdir(parents=True)
    (scratch / "notes.txt").write_text("x")
    for given, said in (
        ("empty", "'empty' holds no run"),
        ("notes.txt", "'notes.txt' is a file"),
        ("nowhere", "there is no folder 'nowhere'"),
        ("../nowhere/..", "there is no folder"),
    ):
        result = peftlab("verify", given)
        assert result.status == 2
        assert said in result.err
        assert result.out == ""


def test_it_writes_nothing(peftlab: Peftlab, run: Path) -> None:
    def state() -> list[tuple[str, int]]:
        return sorted((os.fspath(path), path.stat().st_mtime_ns) for path in run.rglob("*"))

    before = state()
    peftlab("verify", run, "--data", "--rerun-eval")
    assert state() == before
