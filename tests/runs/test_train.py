"""One run from the command line: what it leaves, that it is exact, that it resumes, skips and refuses."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.alone import peftlab_alone
from tests.conftest import TINY, Peftlab, run_folder


def train(peftlab: Peftlab, reviews: Path, *more: str, name: str = "t") -> Path:
    result = peftlab("train", *TINY, f"data.path={reviews}", f"name={name}", "trainer.max_epochs=3", *more)
    assert result.status == 0, result.err
    return run_folder(name)


def adapter(folder: Path) -> bytes:
    return (folder / "adapter.safetensors").read_bytes()


def record(folder: Path) -> dict:  # type: ignore[type-arg]
    return json.loads((folder / "record.json").read_text())


def test_what_a_run_leaves(peftlab: Peftlab, reviews: Path) -> None:
    folder = train(peftlab, reviews, "optim.lr=5e-3")
    assert {path.name for path in folder.iterdir()} == {
        ".lock", "config.yaml", "record.json", "metrics.csv", "curves.png", "adapter.safetensors", "adapter.json",
        "predictions.parquet",
    }  # fmt: skip
    assert "not there" not in peftlab("verify", folder).out, "what is gone on purpose is not missed"
    facts = record(folder)
    assert facts["status"] == "finished"
    assert facts["schema_version"] == 1
    assert facts["key"] == folder.name
    assert facts["data"]["rows"] == {"train": 86, "validation": 10, "test": 24}
    assert facts["metrics"]["test"]["rows"] == 24
    assert set(facts["metrics"]["test"]["per_class"]["f1"]) == {"bad", "good"}
    assert facts["backbone"]["frozen_unchanged"] is True
    # rank 8 on query and value of two layers, 32 wide; the head: 32 · 2 + 2
    assert facts["parameters"]["trainable_without_head"] == 2 * 2 * 8 * (32 + 32)
    assert facts["parameters"]["trainable"] == 2 * 2 * 8 * (32 + 32) + 66
    assert facts["parameters"]["adapter_bytes"] == len(adapter(folder))
    for name in ("train_seconds", "train_samples_per_second", "evaluation_samples_per_second"):
        assert facts["timing"][name] > 0
    assert facts["memory"]["peak_mib"] > 0
    rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    best = max(range(3), key=lambda epoch: float(rows[epoch]["validation/accuracy"]))
    assert facts["selection"]["epoch"] == best
    assert facts["metrics"]["validation"]["accuracy"] == float(rows[best]["validation/accuracy"])
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_adapter_file_holds_what_trains_and_no_more(peftlab: Peftlab, reviews: Path) -> None:
    folder = train(peftlab, reviews, "trainer.keep_checkpoints=true")
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    state = load_file(folder / "adapter.safetensors")
    names = {
        f"bert.encoder.layer.{layer}.attention.self.{role}.deltas.all.lora_{letter}"
        for layer in (0, 1) for role in ("query", "value") for letter in "AB"
    }  # fmt: skip
    assert set(state) == names | {"classifier.weight", "classifier.bias"}
    checkpoint = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert set(checkpoint["state_dict"]) == set(state)


def test_the_same_seed_gives_the_same_bits(peftlab: Peftlab, reviews: Path) -> None:
    more = ("peft.dropout=0.1", "backbone.dropout=0.1")
    one = train(peftlab, reviews, *more, name="one")
    torch.manual_seed(4)  # whatever the process drew before
    two = train(peftlab, reviews, *more, "force=true", name="two")
    other = train(peftlab, reviews, *more, "seed=1", name="other")
    assert one.name == two.name
    assert adapter(one) == adapter(two)
    assert record(one)["metrics"] == record(two)["metrics"]
    assert adapter(one) != adapter(other)


def test_another_data_order_does_not_change_the_start(peftlab: Peftlab, reviews: Path) -> None:
    """With a learning rate of next to nothing the saved adapter is the initial one."""
    still = ("optim=sgd", "optim.lr=1e-30", "trainer.max_steps=1")
    one = train(peftlab, reviews, *still, "data.order_seed=1", name="one")
    two = train(peftlab, reviews, *still, "data.order_seed=2", name="two")
    assert one.name != two.name
    start, other = load_file(one / "adapter.safetensors"), load_file(two / "adapter.safetensors")
    for key, tensor in start.items():
        torch.testing.assert_close(tensor, other[key], atol=1e-20, rtol=0)


def test_data_order_alone_changes_training(peftlab: Peftlab, reviews: Path) -> None:
    one = train(peftlab, reviews, "data.order_seed=1", name="one")
    two = train(peftlab, reviews, "data.order_seed=2", name="two")
    assert adapter(one) != adapter(two)


def test_a_finished_run_is_skipped_and_force_reruns_it(peftlab: Peftlab, reviews: Path) -> None:
    folder = train(peftlab, reviews)
    before = (folder / "record.json").stat().st_mtime_ns
    again = peftlab("train", *TINY, f"data.path={reviews}", "name=t", "trainer.max_epochs=3")
    assert again.status == 0
    assert "is finished already" in again.out
    assert f"{record(folder)['metrics']['test']['accuracy']:.4f}" in again.out
    assert (folder / "record.json").stat().st_mtime_ns == before
    forced = peftlab("train", *TINY, f"data.path={reviews}", "name=t", "trainer.max_epochs=3", "force=true")
    assert forced.status == 0
    assert "epoch 3/3" in forced.out
    assert (folder / "record.json").stat().st_mtime_ns > before


def test_skipping_imports_nothing_heavier_than_torch(peftlab: Peftlab, reviews: Path) -> None:
    train(peftlab, reviews)
    done = peftlab_alone("train", *TINY, f"data.path={reviews}", "name=t", "trainer.max_epochs=3")
    assert "is finished already" in done.out
    assert done.heavy == ["torch"]


def test_identity_ignores_bookkeeping_and_follows_content(peftlab: Peftlab, reviews: Path) -> None:
    def key(*more: str, path: Path = reviews) -> str:
        out = peftlab("check", "--config", *TINY, f"data.path={path}", *more).out
        return out.split("# key ")[1].split(",")[0]

    here = key()
    assert key("name=else", "logger=csv", "trainer.progress_bar=false", "output_dir=x", "data.num_workers=1") == here
    assert key("peft.alpha=16") == key("peft.alpha=16.0")
    moved = reviews.with_name("moved.jsonl")
    shutil.copy(reviews, moved)
    assert key(path=moved) == here, "the same content elsewhere is the same run"
    assert len({here, key("seed=1"), key("peft.rank=4"), key("data.batch_size=4"), key("trainer.max_epochs=9")}) == 5
    moved.write_text(reviews.read_text().replace("moving", "touching"))
    assert key(path=moved) != here


def test_a_killed_run_resumes_to_the_same_bits(peftlab: Peftlab, reviews: Path) -> None:
    more = ("peft.dropout=0.1", "trainer.max_epochs=6", "schedule=cosine")
    assert (
        peftlab("train", *TINY, f"data.path={reviews}", *more, "output_dir=outputs/undisturbed", "name=t").status == 0
    )
    undisturbed = run_folder("undisturbed/t")
    command = [sys.executable, "-m", "peftlab", "train", *TINY, f"data.path={reviews}", *more, "name=killed"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch 2/6"):
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    folder = Path("outputs/killed") / undisturbed.name
    assert not (folder / "record.json").exists()
    again = peftlab("train", *TINY, f"data.path={reviews}", *more, "name=killed")
    assert again.status == 0, again.err
    assert "resuming from" in again.out
    assert "epoch 1/6" not in again.out
    assert adapter(folder) == adapter(undisturbed)
    one, two = record(folder), record(undisturbed)
    assert one["metrics"] == two["metrics"]
    assert len(one["history"]) == 6
    for row, other in zip(one["history"], two["history"], strict=True):  # every epoch, not only the chosen one
        assert {**row, "train_seconds": 0} == {**other, "train_seconds": 0}


def test_a_damaged_checkpoint_is_named(peftlab: Peftlab, reviews: Path) -> None:
    folder = train(peftlab, reviews, "trainer.keep_checkpoints=true")
    (folder / "record.json").unlink()
    last = folder / "checkpoints/last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    arguments = (*TINY, f"data.path={reviews}", "name=t", "trainer.max_epochs=3")
    result = peftlab("train", *arguments)
    assert result.status == 0, "it begins anew, and says why"
    assert f"{last.relative_to(folder.parent)} is damaged" in result.out
    assert (folder / "record.json").exists()


def test_a_run_in_use_is_refused(peftlab: Peftlab, reviews: Path) -> None:
    from peftlab.records.folder import RunFolder

    folder = train(peftlab, reviews)
    (folder / "record.json").unlink()
    with RunFolder(folder).locked():
        result = peftlab("train", *TINY, f"data.path={reviews}", "name=t", "trainer.max_epochs=3")
    assert result.status == 2
    assert f"in use by process {os.getpid()}" in result.err


def test_max_steps_and_early_stopping(peftlab: Peftlab, reviews: Path) -> None:
    folder = train(peftlab, reviews, "trainer.max_steps=5", name="steps")
    assert [row["step"] for row in record(folder)["history"]] == [5]
    folder = train(
        peftlab,
        reviews,
        "optim=sgd",
        "optim.lr=1e-30",
        "trainer.max_epochs=9",
        "trainer.early_stopping_patience=2",
        name="stop",
    )
    assert len(record(folder)["history"]) == 3


def test_the_step_schedule_divides_by_ten_each_epoch(peftlab: Peftlab, reviews: Path) -> None:
    folder = train(peftlab, reviews, "optim=sgd", "optim.lr=1", "schedule=step", name="step")
    rates = [row["lr"] for row in record(folder)["history"]]
    assert rates == pytest.approx([0.1, 0.01, 0.001])  # as each epoch ends, the next one's rate is set


def test_last_is_the_last_epoch(peftlab: Peftlab, reviews: Path) -> None:
    folder = train(peftlab, reviews, "trainer.select=last")
    facts = record(folder)
    assert facts["selection"]["epoch"] == 2
    assert facts["selection"]["rule"] == "last epoch"


@pytest.mark.parametrize("method", ["full", "head"])
def test_other_methods(peftlab: Peftlab, reviews: Path, method: str) -> None:
    folder = train(peftlab, reviews, f"peft={method}")
    parameters = record(folder)["parameters"]
    if method == "full":
        assert parameters["trainable"] == parameters["total"]
    else:
        assert parameters["trainable"] == parameters["head"] == 66
        assert parameters["trainable_without_head"] == 0


def test_bf16_autocast_and_accumulation(peftlab: Peftlab, reviews: Path) -> None:
    folder = train(peftlab, reviews, "trainer.precision=bf16-mixed", "trainer.accumulate_grad_batches=2")
    assert record(folder)["history"][-1]["step"] == 3 * 6  # 86 rows, 8 a batch: 11 batches, 2 a step


def test_the_lectures_classifier_trains_and_is_rebuilt_with_its_vocabulary(peftlab: Peftlab, reviews: Path) -> None:
    more = ("backbone=text_classifier", "peft.targets=[hidden]", "peft.rank=2", "optim=sgd", "optim.lr=1")
    folder = train(peftlab, reviews, *more)
    assert record(folder)["parameters"]["trainable_without_head"] == 2 * 100 + 2 * 128 == 456
    assert (folder / "vocabulary.json").exists()
    evaluated = json.loads(peftlab("evaluate", folder, "--json").out)
    assert evaluated["metrics"]["accuracy"] == record(folder)["metrics"]["test"]["accuracy"]


def test_refused_before_it_began_it_leaves_nothing(peftlab: Peftlab, reviews: Path) -> None:
    for wrong in (
        "peft.targets=[qurey]",
        "data.max_length=100000",
        "data.text_column=txt",
        "data.limit_train=1000",
    ):
        result = peftlab("train", *TINY, f"data.path={reviews}", wrong)
        assert result.status == 2, result.out
        assert wrong.split("=")[0].split(".")[1] in result.err
        assert not list(Path("outputs").glob("*/*"))


def test_a_failure_is_noted_and_mended_by_starting_again(
    peftlab: Peftlab, reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import peftlab.runs.train as module

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    arguments = (*TINY, f"data.path={reviews}", "name=t", "trainer.max_epochs=1")
    with monkeypatch.context() as patch:
        patch.setattr(module, "draw_curves", full_disk)
        result = peftlab("train", *arguments)
    assert result.status == 1
    assert result.err.strip().endswith("No space left on device")
    assert "Traceback" not in result.err
    folder = run_folder("t")
    assert record(folder)["status"] == "failed"
    assert "No space left" in record(folder)["error"]
    assert peftlab("evaluate", folder).status == 2
    assert peftlab("train", *arguments).status == 0
    assert record(folder)["status"] == "finished"
