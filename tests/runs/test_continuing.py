"""More epochs for a run that has ended: two and two are four, to the bit; what may change, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from peftlab.composition import checked
from peftlab.errors import PeftlabError
from peftlab.records.continuing import parent_of
from peftlab.records.identity import run_key
from peftlab.report.build import Request, build
from peftlab.training.checkpoint import AtomicCheckpointIO
from tests.conftest import TINY, Peftlab
from tests.runs.small_runs import edit, found, record_of, set_at

WORDS = (
    *TINY, "data.path=reviews.jsonl", "backbone.dropout=0.1", "peft=lora", "peft.dropout=0.2", "optim.lr=1e-2",
    "schedule=constant", "trainer.threads=1", "trainer.progress_bar=false", "trainer.keep_checkpoints=true", "name=t",
)  # fmt: skip


def _train(peftlab: Peftlab, *more: str) -> Path:
    before = set(Path("outputs/t").glob("*/record.json"))
    result = peftlab("train", *WORDS, *more)
    assert result.status == 0, result.err
    (record,) = set(Path("outputs/t").glob("*/record.json")) - before
    return record.parent


def _untimed(folder: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "train_seconds"} for row in _history(folder)]


def _history(folder: Path) -> list[dict[str, Any]]:
    return list(record_of(folder)["history"])


def _same_weights(first: Path, second: Path) -> bool:
    mine, theirs = load_file(first / "adapter.safetensors"), load_file(second / "adapter.safetensors")
    return set(mine) == set(theirs) and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_two_and_two_epochs_are_four(peftlab: Peftlab, reviews: Path) -> None:
    whole = _train(peftlab, "trainer.max_epochs=4", "trainer.select=last")
    parent = _train(peftlab, "trainer.max_epochs=2", "trainer.select=last")
    more = ("trainer.max_epochs=4", "trainer.select=last", f"continue_from={parent}")
    child = _train(peftlab, *more)
    assert _same_weights(child, whole)
    assert not _same_weights(parent, whole)
    assert _untimed(child) == _untimed(whole)
    assert _history(child)[:2] == _history(parent)
    record, of_whole = record_of(child), record_of(whole)
    assert record["metrics"]["test"] == of_whole["metrics"]["test"]
    assert record["continued_from"] == {
        "path": str(parent), "run": parent.name, "checksum": record_of(parent)["checksum"], "epochs": 2,
        "step": _history(parent)[-1]["step"], "ends": [2],
    }  # fmt: skip
    assert record["timing"]["resumed"] is False
    assert child.name not in (whole.name, parent.name)
    assert peftlab("train", *WORDS, *more).out.startswith(f"{child} is finished already")

    # killed inside its second epoch, and resumed from its own checkpoint: the earlier run's is not needed any more
    shutil.rmtree(child)
    with pytest.MonkeyPatch.context() as patch:
        _kill_at(patch, 3)
        with pytest.raises(_Killed):
            peftlab("train", *WORDS, *more)
    (parent / "checkpoints").rename("aside")
    again = peftlab("train", *WORDS, *more)
    assert "resuming from" in again.out
    assert _same_weights(child, whole)
    assert _untimed(child) == _untimed(whole)
    assert record_of(child)["timing"]["resumed"] is True

    # what else knows of it
    Path("aside").rename(parent / "checkpoints")
    assert found(peftlab, child) == {}
    kept = peftlab("remove", str(parent), "--yes")
    assert kept.status == 2
    assert f"{child} starts from" in kept.err
    rows = build(Request(folders=("outputs/t",))).results
    assert len(list(rows.rows)) == 3, "four epochs, two, and two more are three rows"
    edit(child, set_at("history.0.train/loss", 9.0))
    assert "which it goes on with" in found(peftlab, child)["history"]


class _Killed(BaseException):
    pass


def _kill_at(monkeypatch: pytest.MonkeyPatch, epoch: int) -> None:
    """Die when the checkpoint that ends ``epoch``, from 0, is about to be written."""
    save = AtomicCheckpointIO.save_checkpoint

    def dies(self: AtomicCheckpointIO, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        if checkpoint["history"] and checkpoint["history"][-1]["epoch"] == epoch:
            raise _Killed
        save(self, checkpoint, path, storage_options)

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", dies)


def test_the_schedule_is_that_of_the_new_length_and_the_best_may_be_the_parents(
    peftlab: Peftlab, reviews: Path
) -> None:
    linear = ("schedule=linear", "schedule.warmup_fraction=0")
    parent = _train(peftlab, "trainer.max_epochs=1", *linear)
    child = _train(peftlab, "trainer.max_epochs=3", *linear, f"continue_from={parent}")
    history = _history(child)
    per_epoch, total = history[0]["step"], history[-1]["step"]
    assert total == 3 * per_epoch
    # the rate that a row says is that of the step which would come next: lr · (1 - step / total)
    rates = [1e-2 * (1 - row["step"] / total) for row in history[1:]]
    assert [row["lr"] for row in history[1:]] == pytest.approx(rates)
    assert history[0]["lr"] == pytest.approx(0.0), "that run had come down to none"
    assert history[1]["train/loss"] != history[0]["train/loss"]
    chosen = record_of(child)["selection"]["epoch"]
    best = max(history, key=lambda row: float(row["validation/accuracy"]))["epoch"]
    assert chosen == best
    kept = torch.load(child / "checkpoints/best.ckpt", weights_only=True)["history"][-1]["epoch"]
    assert kept == best


@pytest.fixture
def parent(peftlab: Peftlab, reviews: Path) -> Path:
    return _train(peftlab, "trainer.max_epochs=1")


def test_what_cannot_be_gone_on_with(peftlab: Peftlab, parent: Path) -> None:
    more = ("trainer.max_epochs=2", f"continue_from={parent}")

    def refused(*words: str) -> str:
        with pytest.raises(PeftlabError) as error:
            parent_of(checked([*WORDS, *more, *words]))
        return str(error.value)

    key = run_key(checked([*WORDS, *more]))
    assert key == run_key(checked([*WORDS, *more, f"continue_from={parent.absolute()}", "name=other"])), "no path"
    assert key != run_key(checked([*WORDS, *more, "continue_from=null"]))
    assert "which had seed=0 (here: 1), peft.rank=8 (here: 4)" in refused("peft.rank=4", "seed=1")
    assert "another schedule (Constant)" in refused("schedule=linear")
    assert "no trainer.measure_before beyond its default (here: True)" in refused("trainer.measure_before=true")
    assert "trainer.max_epochs=1 leaves nothing to do: that run has done 1 epoch (" in refused("trainer.max_epochs=1")
    assert "training is over where that run has done" in refused("trainer.max_steps=3")
    Path("other.jsonl").write_text(Path("reviews.jsonl").read_text().replace("film", "movie"))
    assert "other content of the files of data" in refused("data.path=other.jsonl")
    assert "continue_from=nowhere: there is no run folder 'nowhere'" in refused("continue_from=nowhere")
    (parent / "checkpoints/last.ckpt").write_bytes(b"half")
    damaged = peftlab("train", *WORDS, *more)
    assert damaged.status == 2
    assert "last.ckpt is damaged" in damaged.err
    assert "Make it again with its last state: peftlab train" in damaged.err
    shutil.rmtree(parent / "checkpoints")
    assert "A run keeps it with trainer.keep_checkpoints=true. Make it again" in refused()
    before = sorted(Path("outputs/t").iterdir())
    of_many = peftlab("train", "-m", *WORDS, *more, "trainer.max_epochs=2,3")
    assert of_many.status == 2
    assert "2 of 2 jobs cannot run" in of_many.err
    assert sorted(Path("outputs/t").iterdir()) == before
    assert json.loads((parent / "record.json").read_text())["config"]["continue_from"] is None
