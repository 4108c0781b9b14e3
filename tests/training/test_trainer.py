"""The Trainer as a run's config asks for it."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.demos.boring_classes import BoringModel
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from peftlab.objectives.base import objective
from peftlab.training.config import TrainerConfig
from peftlab.training.module import TrainingModule
from peftlab.training.ranks import world_size
from peftlab.training.rows import in_words
from peftlab.training.selection import monitored
from peftlab.training.trainer import ProgressLines, SamplesProgressBar, build_trainer
from tests.conftest import Peftlab
from tests.runs.small_runs import CLASSIFIER


def test_a_login_node_of_a_cluster_is_no_reason_for_a_hint(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There ``srun`` is on the PATH, and Lightning warns at every start that it was not used; a warning fails here."""
    program = scratch / "srun"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(scratch), prepend=os.pathsep)
    config = TrainerConfig(progress_bar=False)
    figure = monitored(config, objective("classification"))
    build_trainer(config, figure, folder=scratch, checkpoints=scratch, logger=None, rows_per_step=1)


def test_auto_is_one_device_whatever_lightning_would_count(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several the config says the number, which the key has; what is counted twice may be counted in two ways."""
    monkeypatch.setattr("lightning.pytorch.accelerators.cpu.CPUAccelerator.auto_device_count", staticmethod(lambda: 2))
    config = TrainerConfig(progress_bar=False, accelerator="cpu", devices="auto", strategy="ddp")
    figure = monitored(config, objective("classification"))
    trainer = build_trainer(config, figure, folder=scratch, checkpoints=scratch, logger=None, rows_per_step=1)
    assert trainer.world_size == world_size(config) == 1


@pytest.mark.parametrize(("columns", "shown"), [(80, []), (200, ["train/loss_step"])])
def test_the_bar_takes_one_line(monkeypatch: pytest.MonkeyPatch, columns: int, shown: list[str]) -> None:
    """No figures beside it on a narrow terminal, no version of a logger anywhere; epochs are counted from 1."""
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((columns, 40)))
    monkeypatch.setattr(
        "lightning.pytorch.callbacks.RichProgressBar.get_metrics", lambda *_: {"v_num": 0, "train/loss_step": 1.0}
    )
    bar = SamplesProgressBar(32)
    bar._trainer = SimpleNamespace(max_epochs=3)  # type: ignore[assignment]
    assert list(bar.get_metrics(None, None)) == shown  # type: ignore[arg-type]
    assert bar._get_train_description(0).rstrip() == "epoch 1/3"


BARS = (("epoch 1/3", 1000), ("Validation", 5), ("Testing", 1), ("Testing", 0))


@pytest.mark.parametrize("width", [60, 80, 120])
def test_of_a_bar_only_the_bar_gives_way(width: int) -> None:
    """A test of one batch has a speed; what is validated comes in batches of its own size."""
    bar = SamplesProgressBar(32, 100)
    now = 0.0
    console = Console(file=io.StringIO(), width=width)
    columns = bar.configure_columns(None)  # type: ignore[arg-type]
    progress = Progress(*columns, console=console, auto_refresh=False, get_time=lambda: now)
    done = {progress.add_task(name, total=12345): number for name, number in BARS}
    now = 10.0
    for task, number in done.items():
        progress.update(task, completed=number)
    console.print(progress.get_renderable())
    trains, validates, tests, begins = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert "1000/12345" in trains
    assert trains.rstrip().endswith(" 3200.0 samples/s")
    assert validates.rstrip().endswith(" 50.0 samples/s")
    assert tests.rstrip().endswith(" 10.0 samples/s")
    assert "samples/s" not in begins


def test_a_line_after_a_slow_first_batch(scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is done, and counts, when the line is printed."""
    trainer = L.Trainer(
        max_epochs=1, limit_train_batches=2, limit_val_batches=0, callbacks=[ProgressLines(8, seconds=0)], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's own, of how its example is set up
        trainer.fit(BoringModel())
    first, second = [line for line in capsys.readouterr().out.splitlines() if "samples/s" in line]
    assert first.startswith("  epoch 1, step 1/2: ")
    assert second.startswith("  epoch 1, step 2/2: ")
    assert second.endswith(" 0 s left of the epoch")


def test_a_row_is_broken_between_its_quantities() -> None:
    train = {"loss": 1.79176, "accuracy": 0.1734, "rows": 173}
    validation = {"loss": 1.7912, "accuracy": 0.2105}
    row = {"epoch": 0, "step": 6, "train_seconds": 2.4}
    told = in_words(objective("classification"), row, train, validation, 2)
    assert "\n" not in told
    assert in_words(objective("classification"), row, train, validation, 2, 80).splitlines() == [
        "epoch 1/2   train loss 1.7918  accuracy 0.1734",
        "            validation loss 1.7912  accuracy 0.2105   2.4 s  72.1 samples/s",
    ]
    assert in_words(objective("classification"), row, train, validation, 2, 200) == told


def test_the_next_forward_pass_has_the_room_of_the_gradients(
    peftlab: Peftlab, reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a step that is done none is left; of one that several batches make they wait for the next batch."""
    forward, seen = TrainingModule.training_step, list[bool]()

    def training_step(self: TrainingModule, batch: Any, batch_idx: int) -> Tensor:
        seen.append(any(parameter.grad is not None for parameter in self.parameters()))
        return forward(self, batch, batch_idx)

    monkeypatch.setattr(TrainingModule, "training_step", training_step)
    peftlab("train", *CLASSIFIER, f"data.path={reviews}", "name=n", "trainer.accumulate_grad_batches=2")
    assert seen[:4] == [False, True, False, True]
