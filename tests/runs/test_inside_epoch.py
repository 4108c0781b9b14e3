"""Checkpoints inside an epoch: a run that was killed anywhere ends as one that was not, to the bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from peftlab.cli import main
from peftlab.composition import composed
from peftlab.config import check
from peftlab.objectives.parts.blocks import MultitaskMetrics
from peftlab.objectives.parts.task import Task
from peftlab.runs.summary import say_where_it_was_begun
from peftlab.training import checkpoint
from peftlab.training.checkpoint import AtomicCheckpointIO
from peftlab.training.inside_epoch import KeepsSteps
from peftlab.training.partial import set_states, states_of
from peftlab.training.resuming import newest_whole
from tests.conftest import TINY, Peftlab
from tests.objectives.scores import REGRESSION, write_scores

WORDS = ("trainer.max_epochs=2", "trainer.threads=1", "trainer.progress_bar=false", "optim.lr=1e-2")
BYTES = (*TINY, "data.path=reviews.jsonl", "backbone.dropout=0.1", *WORDS)
MIXED = (
    *(word for word in REGRESSION if not word.startswith("data")), "data=multitask", "data.batch_size=16",
    "data.tasks=[{task: a, name: text_files, path: reviews.jsonl},"
    "{task: b, name: text_files, path: scores.csv, objective: regression}]",
)  # fmt: skip
CASES: dict[str, tuple[tuple[str, ...], list[tuple[int, int]]]] = {
    # 11 batches an epoch; of three batches a step, the last has two
    "accumulation": (
        (*BYTES, "peft=lora", "peft.dropout=0.2", "trainer.accumulate_grad_batches=3"),
        [(0, 4), (0, 8), (1, 11)],
    ),
    "validations": (
        (
            *BYTES,
            "peft=lora",
            "peft.dropout=0.2",
            "trainer.accumulate_grad_batches=2",
            "trainer.validate_every_n_steps=2",
        ),
        [(0, 4), (0, 10), (1, 8)],
    ),
    "adalora": ((*BYTES, "peft=adalora", "peft.rank=2", "peft.initial_rank=4", "peft.interval=2"), [(0, 7), (1, 9)]),
    "compose": ((*BYTES, "peft=compose", "peft.methods=[{name: lora, dropout: 0.1},{name: prefix_tuning}]"), [(1, 3)]),
    "tasks of two kinds": (MIXED, [(0, 5), (0, 9), (2, 7)]),
}


class Killed(BaseException):
    pass


@contextmanager
def dying_after(epoch: int, batches: int) -> Iterator[None]:
    """Die as that batch ends, after what is written there."""
    ends = KeepsSteps.on_train_batch_end

    def end(self: Any, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        ends(self, trainer, module, outputs, batch, batch_idx)
        if (trainer.current_epoch, batch_idx + 1) == (epoch, batches):
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KeepsSteps, "on_train_batch_end", end)
        yield


APART = ("name=whole", "output_dir=apart")
"""Beside the same run under another name it would be taken for it."""


def ended(name: str) -> tuple[Any, ...]:
    """What a run has ended as, but for seconds."""
    (run,) = Path.cwd().glob(f"*/{name}/*")
    record = json.loads((run / "record.json").read_text())
    history = [{key: value for key, value in row.items() if key != "train_seconds"} for row in record["history"]]
    return (run / "adapter.safetensors").read_bytes(), history, record["metrics"], record["selection"]


@pytest.mark.parametrize("case", CASES)
def test_killed_and_resumed_it_ends_the_same(peftlab: Peftlab, reviews: Path, case: str) -> None:
    write_scores(reviews.parent)
    words, kills = CASES[case]
    assert peftlab("train", *words, *APART).status == 0
    command = ("train", *words, "name=killed", "trainer.checkpoint_every_n_steps=1")
    for epoch, batches in kills:
        with dying_after(epoch, batches), pytest.raises(Killed):
            peftlab(*command)
    result = peftlab(*command)
    assert result.status == 0, result.err
    assert "resuming from outputs/killed" in result.out
    assert f"epoch-{kills[-1][0] + 1}-batch-" in result.out
    assert ended("killed") == ended("whole")


COMMAND = ("train", *REGRESSION, "data.path=scores.csv", "name=killed", "trainer.checkpoint_every_n_steps=2")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that was killed in its second epoch, ``killed``, and one that was not, ``whole``."""
    folder = tmp_path_factory.mktemp("both")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_scores(folder)
        assert main([*COMMAND, *APART]) == 0
        with dying_after(1, 7), pytest.raises(Killed):
            main([*COMMAND])
    return folder


@pytest.fixture
def killed(both: Path, scratch: Path) -> Path:
    """The checkpoints of the killed one."""
    shutil.copytree(both, scratch, dirs_exist_ok=True)
    (folder,) = Path("outputs/killed").glob("*/checkpoints")
    return folder


def test_the_last_two_stay_and_the_epoch_s_own(killed: Path) -> None:
    names = {path.name for path in killed.iterdir()}
    assert names == {"best.ckpt", "last.ckpt", "epoch-2-batch-5.ckpt", "epoch-2-batch-7.ckpt"}


def test_what_was_half_written_goes(killed: Path) -> None:
    """A process that is killed while it writes leaves a file of the size of a checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "_seal", _die)
        patch.setattr(Path, "unlink", _die)  # whoever is killed tidies nothing up
        with pytest.raises(Killed):
            AtomicCheckpointIO().save_checkpoint({}, killed / "epoch-2-batch-9.ckpt")
    assert len(list(killed.iterdir())) == 5
    assert newest_whole(killed, None) == (killed / "epoch-2-batch-7.ckpt", [])
    assert len(list(killed.iterdir())) == 4


def _die(*_: Any, **__: Any) -> None:
    raise Killed


@pytest.mark.parametrize(
    ("damaged", "used"),
    [
        (["epoch-2-batch-7"], "epoch-2-batch-5"),
        (["epoch-2-batch-7", "epoch-2-batch-5"], "last"),
        (["last"], "epoch-2-batch-7"),
        (["best"], ""),
        (["epoch-2-batch-7", "epoch-2-batch-5", "last"], ""),
    ],
)
def test_of_what_is_damaged_the_one_before_is_used(
    peftlab: Peftlab, killed: Path, damaged: list[str], used: str
) -> None:
    for name in damaged:
        path = killed / f"{name}.ckpt"
        path.write_bytes(path.read_bytes()[:-1000])
    result = peftlab(*COMMAND)
    assert result.status == 0, result.err
    assert all(f"{name}.ckpt is damaged" in result.out for name in damaged)
    assert {f"{name}.ckpt" for name in damaged} <= {path.name for path in (killed.parent / "damaged").iterdir()}
    if used:
        assert f"resuming from {killed}/{used}.ckpt" in result.out
        assert f"{used}.ckpt is whole, and the run goes on from it" in result.out
    else:
        assert "resuming" not in result.out
    assert ended("killed") == ended("whole")


def test_one_of_other_processes_is_not_gone_on_with(killed: Path) -> None:
    """What each process had added up is of those that there were."""
    chosen, said = newest_whole(killed, None, processes=2)
    assert chosen == killed / "last.ckpt"
    assert "epoch-2-batch-7.ckpt is of a run on 1 process, and this one has 2" in said[0]


def test_begun_on_other_devices_it_is_named(killed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = list(COMMAND[1:])
    for more, named in (
        (["trainer.devices=2"], True),
        (["trainer.strategy=ddp"], True),
        (["trainer.devices=2", "seed=9"], False),
        (["trainer.devices=2", "optim.lr=0.5"], False),
        ([], False),
    ):
        say_where_it_was_begun(check(composed([*words, *more])))
        assert (f"{killed.parent} is this run on 1 process, and has not ended" in capsys.readouterr().out) == named
    (killed.parent / "config.yaml").write_text("[")
    say_where_it_was_begun(check(composed([*words, "trainer.devices=2"])))
    assert not capsys.readouterr().out


def test_by_the_clock_and_not_by_steps(peftlab: Peftlab, scratch: Path) -> None:
    """With an interval of next to nothing each whole step but the epoch's last is one; with null there is none."""
    write_scores(scratch)
    for minutes, expected in (("1e-9", {"epoch-1-batch-6.ckpt", "epoch-1-batch-3.ckpt"}), ("null", set())):
        name = f"name=t{minutes}"
        with dying_after(0, 8), pytest.raises(Killed):
            peftlab(
                *COMMAND[:-2], name, f"trainer.checkpoint_every_minutes={minutes}", "trainer.accumulate_grad_batches=3"
            )
        assert {path.name for path in Path("outputs").glob(f"t{minutes}/*/checkpoints/*")} == expected


def test_metrics_go_on_where_they_were() -> None:
    """All kinds of states: sums, counts, lists of rows, of several tasks and of tasks of two kinds."""
    spec = [Task("a", 0, 2), Task("b", 2, 5)]
    whole, first, second = (MultitaskMetrics(spec) for _ in range(3))
    torch.manual_seed(0)
    batches = [(torch.randn(6, 5), torch.randint(0, 5, (6,)), torch.rand(6)) for _ in range(4)]
    for number, batch in enumerate(batches):
        whole.update(*batch)
        (first if number < 2 else second).update(*batch)
        if number == 1:
            set_states(second, states_of(first))
    assert second.compute() == whole.compute()
