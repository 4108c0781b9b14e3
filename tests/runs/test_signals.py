"""Signals that ask a run to end: a checkpoint after the step, exit status 85 (130 for Ctrl-C), and the same bits."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from peftlab.signals import ASKED, ASKING, Interrupted, give_back, take
from peftlab.training.module import TrainingModule
from tests.conftest import Peftlab
from tests.objectives.scores import REGRESSION, write_scores
from tests.runs.test_inside_epoch import APART, ended

COMMAND = (
    "train",
    *REGRESSION,
    "data.path=scores.csv",
    "trainer.max_epochs=2",
    "trainer.accumulate_grad_batches=2",
    "data.eval_batch_size=4",
)


@pytest.fixture(autouse=True)
def usual_handlers() -> Iterator[None]:
    """A shell's background job, which the tests may be, ignores Ctrl-C."""
    usual = dict.fromkeys(ASKING, signal.SIG_DFL) | {signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    left = {number: signal.getsignal(number) for number in ASKING}
    give_back(before)
    assert left == usual, "what was heard meanwhile is put back"


@contextmanager
def sent(hook: str, *numbers: int, at: Callable[..., bool] = lambda *_: True) -> Iterator[None]:
    """Send signals to this process as ``hook`` of the module begins, the first time that ``at`` says so."""
    method, left = getattr(TrainingModule, hook), list(numbers)

    def send(self: Any, *given: Any, **more: Any) -> Any:
        if left and at(self, *given, *more.values()):
            left.clear()
            for number in numbers:
                os.kill(os.getpid(), number)
        return method(self, *given, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingModule, hook, send)
        yield
    assert not left


def record() -> Any:
    (path,) = Path("outputs/asked").glob("*/record.json")
    return json.loads(path.read_text())


def test_each_signal_leaves_a_checkpoint_and_the_run_ends_the_same(peftlab: Peftlab, scratch: Path) -> None:
    """All of them in one run: in the first batch of a step, so that the step's second is done before it ends."""
    write_scores(scratch)
    assert peftlab(*COMMAND, *APART).status == 0
    for number, name, (epoch, batch) in (
        (signal.SIGTERM, "SIGTERM", (0, 2)),
        (signal.SIGUSR1, "SIGUSR1", (0, 6)),
        (signal.SIGHUP, "SIGHUP", (0, 8)),
        (signal.SIGUSR2, "SIGUSR2", (1, 0)),
        (signal.SIGINT, "SIGINT", (1, 4)),
    ):
        with sent("training_step", number, at=lambda self, _, i, e=epoch, b=batch: (self.current_epoch, i) == (e, b)):
            result = peftlab(*COMMAND, "name=asked")
        assert result.status == (130 if number == signal.SIGINT else 85), result.err
        where = f"after batch {batch + 2} of epoch {epoch + 1}"
        assert result.err == f"peftlab train: interrupted by {name}; the same command goes on {where}.\n"
        assert record()["status"] == "interrupted"
        assert name in record()["error"]
        assert next(Path("outputs/asked").glob(f"*/checkpoints/epoch-{epoch + 1}-batch-{batch + 2}.ckpt"))
    result = peftlab(*COMMAND, "name=asked")
    assert "epoch-2-batch-6.ckpt" in result.out
    assert ended("asked") == ended("whole")


@pytest.mark.parametrize(
    ("hook", "epochs"),
    [("configure_optimizers", 0), ("validation_step", 0), ("on_train_epoch_end", 1), ("test_step", 2)],
)
def test_elsewhere_it_ends_at_once_and_what_is_there_resumes(
    peftlab: Peftlab, scratch: Path, hook: str, epochs: int
) -> None:
    write_scores(scratch)
    assert peftlab(*COMMAND, *APART).status == 0
    with sent(hook, signal.SIGTERM):
        result = peftlab(*COMMAND, "name=asked")
    assert result.status == 85
    assert result.err == "peftlab train: interrupted by SIGTERM; the same command goes on with what is there.\n"
    result = peftlab(*COMMAND, "name=asked")
    assert result.status == 0
    assert [f"epoch {epoch}/2" in result.out for epoch in (1, 2)] == [epochs < 1, epochs < 2]
    assert ended("asked") == ended("whole")


def test_the_second_ctrl_c_ends_at_once(peftlab: Peftlab, scratch: Path) -> None:
    write_scores(scratch)
    with sent("training_step", signal.SIGINT, signal.SIGINT, at=lambda self, _, i: i == 2):
        result = peftlab(*COMMAND, "name=asked")
    assert result.status == 130
    assert not list(Path("outputs/asked").glob("*/checkpoints/*"))
    assert record()["status"] == "interrupted"


def test_only_the_first_of_several_signals_counts() -> None:
    with ASKED.heard():
        ASKED.at_steps = True
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        with pytest.raises(Interrupted, match="SIGTERM"):
            ASKED.check()


def test_who_ignores_a_signal_goes_on_to(peftlab: Peftlab, scratch: Path) -> None:
    """``nohup`` ignores SIGHUP, a shell's background job SIGINT."""
    write_scores(scratch)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with sent("training_step", signal.SIGHUP):
        assert peftlab(*COMMAND, "name=asked").status == 0
    assert signal.signal(signal.SIGHUP, signal.SIG_DFL) is signal.SIG_IGN


def test_a_process_that_was_forked_meanwhile_dies_of_its_own() -> None:
    with ASKED.heard():
        ASKED.at_steps = True
        if (child := os.fork()) == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
        assert ASKED.number is None


def test_a_handler_of_a_program_stays() -> None:
    def own(number: int, frame: Any) -> None: ...

    signal.signal(signal.SIGUSR1, own)
    with ASKED.heard():
        assert signal.getsignal(signal.SIGUSR1) is own
        assert signal.SIGUSR1 not in take(ASKING, own)
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)


def test_what_a_command_has_heard_is_forgotten_after_it(scratch: Path) -> None:
    """A program goes on after a command that was interrupted, and may train by ``fit``."""
    with pytest.raises(Interrupted), ASKED.heard():
        os.kill(os.getpid(), signal.SIGTERM)
    ASKED.check()
    assert not ASKED.at_steps
