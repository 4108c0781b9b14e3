"""DDP processes on CPUs: they train one model as one process would, evaluate every row once, and leave one record."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from peftlab.records.folder import RunFolder
from peftlab.records.predictions import read_predictions
from tests.conftest import TINY, Peftlab, run_folder, write_reviews
from tests.forked import Forked, peftlab_forked


def test_two_processes(peftlab: Peftlab, reviews: Path) -> None:
    common = [*TINY, f"data.path={reviews}", "trainer.max_epochs=2", "data.eval_batch_size=3"]
    ranks = ("trainer.devices=2", "trainer.strategy=ddp", "trainer.accelerator=cpu")
    peftlab_forked("train", *common, "name=ddp", "data.batch_size=4", *ranks)
    facts = json.loads((run_folder("ddp") / "record.json").read_text())
    # 24 test rows and 10 validation rows over two ranks of three a batch: unequal batches, no row twice.
    assert facts["metrics"]["test"]["rows"] == 24
    assert [row["step"] for row in facts["history"]] == [11, 22]  # 86 rows, 2 · 4 a step
    assert sum(row["train_rows"] for row in facts["history"]) == 2 * 86
    # The same effective batch in one process sees the same rows in each step and ends close by.
    assert peftlab("train", *common, "name=one", "data.batch_size=8").status == 0
    one = json.loads((run_folder("one") / "record.json").read_text())
    assert [row["step"] for row in one["history"]] == [11, 22]
    assert abs(one["history"][1]["train/loss"] - facts["history"][1]["train/loss"]) < 0.02
    # And evaluating the trained adapter in one process gives the figures the two processes gave, row by row.
    again = json.loads(peftlab("evaluate", run_folder("ddp"), "--predictions", "one.jsonl", "--json").out)
    alone = [json.loads(line) for line in Path("one.jsonl").read_text().splitlines()]
    together = read_predictions(RunFolder(run_folder("ddp"))).to_pylist()
    assert [row["row"] for row in together] == list(range(24))
    for one_row, row in zip(alone, together, strict=True):
        assert {name: one_row[name] for name in ("hash", "gold", "predicted")} == {
            name: row[name] for name in ("hash", "gold", "predicted")
        }
    assert again["metrics"]["accuracy"] == facts["metrics"]["test"]["accuracy"]
    assert abs(again["metrics"]["loss"] - facts["metrics"]["test"]["loss"]) < 1e-6


ALIKE = (
    "backbone=tiny", "backbone.dropout=0", "backbone.attention_dropout=0", "logger=none", "data=text_files",
    "data.path=reviews.jsonl", "data.val_fraction=0.03", "data.max_length=32", "data.eval_batch_size=2", "optim=sgd",
    "optim.lr=0.3", "schedule=constant", "trainer.max_epochs=2", "trainer.accelerator=cpu", "trainer.threads=1",
    "peft=lora", "trainer.accumulate_grad_batches=2",
)  # fmt: skip


@pytest.mark.parametrize(("processes", "rows", "rest"), [(2, 99, 5), (3, 94, 1)])
def test_rows_that_do_not_divide(peftlab: Peftlab, scratch: Path, processes: int, rows: int, rest: int) -> None:
    """Batches of 12 leave five, shared as 3 and 2, or one, of which two processes have none; of validation likewise."""
    write_reviews(scratch, rows=rows)
    assert peftlab("train", *ALIKE, "name=one", "data.batch_size=12").status == 0
    peftlab_forked(
        "train", *ALIKE, "name=several", f"data.batch_size={12 // processes}", f"trainer.devices={processes}",
        "trainer.strategy=ddp", f"backbone.gradient_checkpointing={str(processes == 2).lower()}",
    )  # fmt: skip
    one, several = (json.loads((run_folder(name) / "record.json").read_text()) for name in ("one", "several"))
    assert several["metrics"]["test"]["rows"] == one["metrics"]["test"]["rows"]
    assert one["history"][0]["train_rows"] % 12 == rest
    for mine, theirs in zip(several["history"], one["history"], strict=True):
        assert (mine["step"], mine["train_rows"]) == (theirs["step"], theirs["train_rows"])
        for figure in ("train/loss", "validation/loss"):
            assert abs(mine[figure] - theirs[figure]) < 1e-6
    weights = [load_file(run_folder(name) / "adapter.safetensors") for name in ("one", "several")]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=0, atol=1e-6)


def test_a_global_batch_is_the_same_step_on_any_number_of_processes(peftlab: Peftlab, scratch: Path) -> None:
    """Of 25 rows, in one piece in one process, and in three pieces of at most 5 in each of two; 73 rows leave some."""
    write_reviews(scratch, rows=94)
    common = [*(word for word in ALIKE if "accumulate" not in word), "data.global_batch_size=25"]
    assert peftlab("train", *common, "name=one", "data.batch_size=25").status == 0
    done = peftlab_forked("train", *common, "name=two", "data.batch_size=5", "trainer.devices=2")
    assert "25 texts a step, in 3 batches a device" in done.out
    one, two = (json.loads((run_folder(name) / "record.json").read_text()) for name in ("one", "two"))
    assert one["history"][0]["train_rows"] == 73, "of which the last of three steps has 23"
    assert one["key"] != two["key"], "the order of the sums is another"
    for mine, theirs in zip(two["history"], one["history"], strict=True):
        assert (mine["step"], mine["train_rows"]) == (theirs["step"], theirs["train_rows"])
        for figure in ("train/loss", "validation/loss"):
            assert abs(mine[figure] - theirs[figure]) < 1e-6
    weights = [load_file(run_folder(name) / "adapter.safetensors") for name in ("one", "two")]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=0, atol=1e-6)


INTERRUPTED = (
    *TINY, "data.path=reviews.jsonl", "data.batch_size=2", "peft.dropout=0.2", "trainer.max_epochs=2",
    "trainer.accelerator=cpu", "trainer.devices=2", "trainer.progress_bar=false", "trainer.threads=1",
)  # fmt: skip


def started(name: str, *more: str) -> Forked:
    return Forked("train", *INTERRUPTED, f"name={name}", *more)


@pytest.mark.slow
def test_asked_to_end_the_processes_end_after_the_same_step(reviews: Path) -> None:
    """Inside an epoch; later both go on with what each had added up, and end as two that nobody asked."""
    with started("whole", "output_dir=apart") as whole:
        assert whole.status() == 0, whole.err
    with started("asked", "trainer.checkpoint_every_n_steps=1") as process:
        until = time.monotonic() + 120
        while not list(Path("outputs/asked").glob("*/checkpoints/*.ckpt")) and time.monotonic() < until:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.status() == 85, process.err
    assert process.err.count("interrupted by SIGTERM; the same command goes on after batch") == 1
    with started("asked") as process:
        assert process.status() == 0, process.err
    assert "resuming from outputs/asked" in process.out
    (one,), other = Path("apart/whole").iterdir(), run_folder("asked")
    assert (one / "adapter.safetensors").read_bytes() == (other / "adapter.safetensors").read_bytes()
    histories = [json.loads((run / "record.json").read_text())["history"] for run in (one, other)]
    for mine, theirs in zip(*histories, strict=True):
        assert {**mine, "train_seconds": 0} == {**theirs, "train_seconds": 0}
