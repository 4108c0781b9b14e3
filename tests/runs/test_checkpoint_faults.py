"""Checkpoints: what is damaged, gone, of another epoch, or of an earlier version; and runs whose folder was moved."""

from __future__ import annotations

import io
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from peftlab.errors import RunError
from peftlab.objectives.base import LOSS, Figure
from peftlab.training.checkpoint import AtomicCheckpointIO, read_checkpoint
from peftlab.training.selection import best_row
from tests.conftest import Peftlab
from tests.runs.small_runs import CLASSIFIER, finished

COMMAND = ("train", *CLASSIFIER, "data.path=reviews.jsonl", "name=t")


@pytest.fixture
def killed(reviews: Path) -> Path:
    """A run as a kill after its last epoch leaves it; ``whole/`` holds what it ends as."""
    run = finished(reviews)
    shutil.copytree(run, "whole")
    for path in run.iterdir():
        if path.name not in ("checkpoints", "config.yaml", "metrics.csv"):
            path.unlink()
    return run


def same_adapter(run: Path) -> bool:
    return (run / "adapter.safetensors").read_bytes() == Path("whole/adapter.safetensors").read_bytes()


def content() -> dict[str, Any]:
    return {"state_dict": {"a": torch.arange(300.0)}, "history": [{"epoch": 0}], "callbacks": {}}


def test_a_killed_run_ends_the_same(peftlab: Peftlab, killed: Path) -> None:
    assert peftlab(*COMMAND).status == 0
    assert same_adapter(killed)
    assert peftlab("verify", killed, "--rerun-eval").status == 0


@pytest.mark.parametrize("name", ["last", "best"])
@pytest.mark.parametrize("damage", ["empty", "cut", "bit", "text", "gone"])
def test_damage_is_named_with_the_way_out(peftlab: Peftlab, killed: Path, name: str, damage: str) -> None:
    path = killed / f"checkpoints/{name}.ckpt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x40
    cut = {"empty": b"", "cut": data[: len(data) // 2], "bit": bytes(data), "text": b"a: 1\n", "gone": b""}[damage]
    path.write_bytes(cut)
    if damage == "gone":
        path.unlink()
    result = peftlab(*COMMAND)
    assert result.status == 0, result.err
    assert same_adapter(killed), "from the beginning it ends with the same bits"
    if (name, damage) == ("last", "gone"):
        return
    assert str(path) in result.out
    assert "force=true" in result.out
    assert "resuming" not in result.out
    left = killed / f"damaged/{name}.ckpt"
    assert (left.read_bytes() if left.exists() else b"") == cut, "nothing is thrown away"


def test_a_best_checkpoint_of_another_epoch(peftlab: Peftlab, killed: Path) -> None:
    """Whole, but of the last epoch, where the history has an earlier one as the best."""
    history = read_checkpoint(killed / "checkpoints/last.ckpt")["history"]
    best, last = (killed / f"checkpoints/{name}.ckpt" for name in ("best", "last"))
    assert best_row(history, Figure("accuracy", "accuracy", "max")) is not history[-1]
    shutil.copy(last, best)
    result = peftlab(*COMMAND)
    assert result.status == 0, result.err
    assert "best.ckpt holds the weights of epoch" in result.out
    assert same_adapter(killed)


@pytest.mark.parametrize("seed", range(40))
def test_no_bit_of_a_checkpoint_goes_unseen(scratch: Path, seed: int) -> None:
    path = scratch / "c.ckpt"
    AtomicCheckpointIO().save_checkpoint(content(), path)
    data = bytearray(path.read_bytes())
    at = random.Random(seed).randrange(len(data) * 8) if seed else len(data) * 8 - 1
    data[at // 8] ^= 1 << (at % 8)
    path.write_bytes(data)
    try:
        found = read_checkpoint(path)
    except RunError:
        return
    # Only a bit of the mark itself may pass, and what is in the archive then is whole by its own checksums.
    assert torch.equal(found["state_dict"]["a"], content()["state_dict"]["a"])
    assert at // 8 >= len(data) - 64 - len("peftlab sha256 ") - 2


def test_a_checkpoint_is_read_by_torch_and_is_whole_by_its_own_word(scratch: Path) -> None:
    AtomicCheckpointIO().save_checkpoint(content(), scratch / "c.ckpt")
    assert torch.equal(
        torch.load(scratch / "c.ckpt", weights_only=True)["state_dict"]["a"], content()["state_dict"]["a"]
    )
    assert read_checkpoint(scratch / "c.ckpt")["history"] == content()["history"]
    assert (scratch / "c.ckpt").stat().st_mode & 0o777 == 0o644


def test_those_of_earlier_versions_have_the_checksums_of_the_archive(scratch: Path) -> None:
    path, file = scratch / "c.ckpt", io.BytesIO()
    torch.save(content(), file)
    path.write_bytes(file.getvalue())
    assert read_checkpoint(path)["history"] == content()["history"]
    data = bytearray(file.getvalue())
    at = data.find(torch.arange(300.0).numpy().tobytes()) + 400
    data[at] ^= 0x40
    path.write_bytes(data)
    with pytest.raises(RunError, match=r"its part .* has other content"):
        read_checkpoint(path)


def test_nothing_in_a_checkpoint_names_the_folder(killed: Path) -> None:
    for path in (killed / "checkpoints").iterdir():
        texts = _texts(torch.load(path, weights_only=True))
        assert [one for one in texts if one.startswith("/") or "outputs" in one or killed.name in one] == []


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for pair in value.items() for part in pair for text in _texts(part)]
    return [text for part in value for text in _texts(part)] if isinstance(value, list | tuple) else []


def test_a_run_that_was_moved_while_it_was_unfinished(peftlab: Peftlab, reviews: Path) -> None:
    """Its best epoch is an early one, made before the move: only the history still says so."""
    words = [word for word in COMMAND if not word.startswith("trainer.max_epochs")] + ["trainer.monitor=loss"]
    words += ["optim.lr=3", "optim.weight_decay=0"]
    assert peftlab(*words, "trainer.max_epochs=6", "output_dir=undisturbed").status == 0
    (whole,) = Path("undisturbed/t").glob("*")
    history = read_checkpoint(whole / "checkpoints/last.ckpt")["history"]
    best = int(best_row(history, LOSS)["epoch"])
    from peftlab.training import checkpoint

    ends = max(best + 1, 2)
    assert best < len(history) - 1, "else it proves nothing: choose another learning rate"

    class Killed(BaseException):
        pass

    write, written = checkpoint.AtomicCheckpointIO.save_checkpoint, []

    def save(self: Any, what: Any, path: Any, storage_options: Any = None) -> None:
        write(self, what, path)
        written.append(path)
        if Path(path).name == "last.ckpt" and len(what["history"]) == ends:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint.AtomicCheckpointIO, "save_checkpoint", save)
        with pytest.raises(Killed):
            peftlab(*words, "trainer.max_epochs=6", "output_dir=before")
    (run,) = Path("before/t").glob("*")
    (run / "record.json").unlink(missing_ok=True)
    Path("before").rename("after")
    result = peftlab(*words, "trainer.max_epochs=6", "output_dir=after")
    assert result.status == 0, result.err
    assert "resuming from" in result.out
    moved = Path("after/t") / run.name
    assert (moved / "adapter.safetensors").read_bytes() == (whole / "adapter.safetensors").read_bytes()
    assert peftlab("verify", "after").status == 0


@pytest.mark.parametrize(
    ("values", "better", "best"),
    [
        ([0.5, 0.7, 0.7], "max", 1),
        ([0.5, 0.3, 0.3], "min", 1),
        ([None, 0.3], "min", 1),
        ([float("nan"), 0.3, 0.2], "min", 2),
        ([0.3, float("nan")], "max", 0),
        ([None, None], "min", 0),
        ([0.7, 0.7 + 1e-12], "max", 0),  # equal in single precision, in which Lightning has compared them
        ([1e300, 2.0], "min", 1),
    ],
)
def test_the_best_epoch(values: list[float | None], better: Any, best: int) -> None:
    history = [{"epoch": epoch, "validation/f": value} for epoch, value in enumerate(values)]
    assert best_row(history, Figure("f", "f", better))["epoch"] == best


def test_an_epoch_beyond_its_budget_is_chosen_only_while_there_is_no_other() -> None:
    """The best of all has components that the method still prunes."""
    figure = Figure("f", "f", "max")
    rows = [(0.9, 4), (0.8, 2), (0.6, 0), (0.7, 0)]
    history = [{"epoch": i, "validation/f": value, "over_budget": over} for i, (value, over) in enumerate(rows)]
    assert [best_row(history[:stop], figure)["epoch"] for stop in (1, 2, 3, 4)] == [0, 0, 2, 3]
