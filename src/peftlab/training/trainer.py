"""The Lightning Trainer as a run's config asks for it, and the progress bar."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment, find_free_network_port
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.callbacks import Callback, RichProgressBar, TQDMProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy, Strategy
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from rich.progress import BarColumn, ProgressColumn, Task
from rich.table import Column
from rich.text import Text

from peftlab.errors import ConfigError
from peftlab.objectives.base import Figure
from peftlab.peft.adapter import Adapter
from peftlab.training.checkpoint import AtomicCheckpointIO, KeepsCheckpoints
from peftlab.training.config import TrainerConfig
from peftlab.training.meeting import address
from peftlab.training.ranks import Ranks
from peftlab.training.sharding import ShardedStrategy
from peftlab.training.validations import Validates

ALONE = Ranks()


def build_trainer(
    config: TrainerConfig,
    monitor: Figure,
    *,
    folder: Path,
    checkpoints: Path,
    logger: Logger | list[Logger] | None,
    rows_per_step: int,
    rows_per_evaluation: int | None = None,
    ranks: Ranks = ALONE,
    adapter: Adapter | None = None,
) -> L.Trainer:
    """The Trainer of one run.

    Args:
        config: the run's ``trainer`` group.
        monitor: the validation figure that chooses the best weights and stops early.
        folder: the run's folder.
        checkpoints: where ``best.ckpt`` and ``last.ckpt`` go.
        logger: what gets values of steps, one or several, or None.
        rows_per_step: texts a step takes in all processes, for the bar's samples/s.
        rows_per_evaluation: those of a batch that is validated or tested; None: as many.
        ranks: which of the run's processes this is.
        adapter: what trains; None: nothing will.

    Raises:
        ConfigError: if the machine has not what the config asks for.
    """
    quiet()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    # With deterministic algorithms torch fills all memory that it hands out, so that a program that reads what nobody
    # wrote shows it: a pass over every tensor more, and on a GPU a launch.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    callbacks: list[Callback] = []
    notebook = in_notebook()
    show_bar = config.progress_bar and (notebook or sys.stdout.isatty())
    if show_bar:
        callbacks.append(TQDMProgressBar() if notebook else SamplesProgressBar(rows_per_step, rows_per_evaluation))
    elif config.progress_bar:
        callbacks.append(ProgressLines(rows_per_step))
    keeps = KeepsCheckpoints(checkpoints, config, monitor)
    callbacks += [Validates(config, monitor, keeps), keeps]
    trainer = _trainer(config, callbacks, folder, logger, ranks, show_bar=show_bar, adapter=adapter)
    vars(trainer)["_signal_connector"] = _NoSignals(trainer)
    return trainer


def _trainer(
    config: TrainerConfig,
    callbacks: list[Callback],
    folder: Path,
    logger: Logger | list[Logger] | None,
    ranks: Ranks,
    *,
    show_bar: bool,
    adapter: Adapter | None,
) -> L.Trainer:
    try:
        return L.Trainer(
            accelerator=config.accelerator,
            # auto of several is a number by now, which is in the key: what Lightning would count here might differ
            devices=1 if config.devices == "auto" else config.devices,
            num_nodes=config.num_nodes,
            strategy=_strategy(config, adapter),
            precision=config.precision,
            max_epochs=config.max_epochs,
            accumulate_grad_batches=config.accumulate_grad_batches,
            gradient_clip_val=config.gradient_clip_norm or None,
            deterministic=config.deterministic,
            log_every_n_steps=config.log_every_n_steps,
            callbacks=callbacks,
            logger=logger or False,
            plugins=[AtomicCheckpointIO(), _environment(ranks)],
            default_root_dir=folder / "none",  # Lightning looks there for its own requeue's checkpoints: there are none
            enable_progress_bar=show_bar,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # our samplers know their rank, and evaluate every row once
        )
    except (ValueError, RuntimeError, ImportError) as error:
        # Lightning's MisconfigurationException is a plain Exception subclass of its own.
        raise _machine_lacks(config, error) from error
    except Exception as error:
        if type(error).__name__ == "MisconfigurationException":
            raise _machine_lacks(config, error) from error
        raise


class _NoSignals(_SignalConnector):
    """Lightning's handler of SIGTERM asks the other ranks from inside of itself, wherever they are: ours decide."""

    def register_signal_handlers(self) -> None:
        """Leave handlers as they are."""

    def teardown(self) -> None:
        """Nothing was changed."""


def _machine_lacks(config: TrainerConfig, error: Exception) -> ConfigError:
    return ConfigError(
        f"this machine cannot run trainer.accelerator={config.accelerator}, trainer.devices={config.devices}, "
        f"trainer.precision={config.precision}: {' '.join(str(error).split())} "
        "(trainer.accelerator=auto takes what there is.)"
    )


class _Own(LightningEnvironment):
    """Processes that peftlab starts itself; what other programs have left in the environment starts none."""

    def __init__(self, ranks: Ranks) -> None:
        super().__init__()
        self._ranks = ranks
        if ranks.local_rank == 0:
            os.environ.pop("LOCAL_RANK", None)  # from here on it says that the others are started

    @property
    def main_port(self) -> int:
        if self._main_port == -1 and self._ranks.local_rank == 0:
            self._main_port = find_free_network_port()
        return super().main_port

    @property
    def main_address(self) -> str:
        return "127.0.0.1"

    def local_rank(self) -> int:
        return self._ranks.local_rank

    def node_rank(self) -> int:
        return 0


class _Srun(SLURMEnvironment):
    """The tasks of a step. Lightning's own requeue, with its own checkpoints, is off."""

    def __init__(self, ranks: Ranks) -> None:
        super().__init__(auto_requeue=False)
        self._ranks = ranks

    @property
    def main_address(self) -> str:
        return address(self._ranks)[0]

    @property
    def main_port(self) -> int:
        return address(self._ranks)[1]

    @staticmethod
    def _validate_srun_variables() -> None:
        """What it warns of is of a job; of the step, we know."""

    def world_size(self) -> int:
        assert self._ranks.world_size is not None
        return self._ranks.world_size

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        """:meth:`Ranks.require` has done so."""


def _environment(ranks: Ranks) -> ClusterEnvironment:
    if ranks.starter == "torchrun":
        return TorchElasticEnvironment()
    return _Srun(ranks) if ranks.starter == "srun" else _Own(ranks)


def _strategy(config: TrainerConfig, adapter: Adapter | None) -> Strategy | str:
    several = config.devices not in (1, "auto") or config.num_nodes > 1
    if adapter is None or (config.strategy == "auto" and not several):
        return "auto"
    ddp: dict[str, Any] = {
        # No buffer of ours changes in training; broadcasting them in each forward pass would also
        # hang an evaluation in which the ranks have different numbers of batches.
        "broadcast_buffers": False,
        # Of the backbone's own tensors some may take no part (a pooler that is not read).
        "find_unused_parameters": bool(adapter.own_names()),
    }
    return ShardedStrategy(adapter, **ddp) if config.strategy == "fsdp" else DDPStrategy(**ddp)


def quiet() -> None:
    """Silence what Lightning says at every start and what does not apply to how peftlab uses it."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        r".*does not have many workers.*",  # batches are cut from memory-mapped tokens: workers do not help
        r".*Checkpoint directory .* exists and is not empty.*",  # a resumed run
        r".*The number of training batches .* is smaller than the logging interval.*",
        r".*You are trying to `self.log\(\)` but the `self.trainer` reference.*",
        r".*Trying to infer the `batch_size` from an ambiguous collection.*",
        r".*It is recommended to use `self.log\(.*sync_dist=True.*",  # torchmetrics has reduced it already
        r".*Found .* module\(s\) in eval mode at the start of training.*",
        r".*GPU available but not used.*",
        r".*`broadcast_buffers` is deprecated.*",  # torch 2.13, of what DDP is told above
        r".*The `srun` command is available on your system but is not used.*",  # a login node
        r".*a checkpoint that ended before the epoch ended.*",  # our samplers begin where it did
        r".*treespec, LeafSpec.*",  # Lightning 2.6.6 on torch 2.13
    ):
        warnings.filterwarnings("ignore", message)


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel, which draws a bar with its own means."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


class ProgressLines(Callback):
    """Where no bar can be drawn (a log file, a cluster job): a line now and then."""

    def __init__(self, rows_per_step: int, seconds: float = 30.0) -> None:
        self._rows_per_step = rows_per_step
        self._seconds = seconds
        self._began = self._last = 0.0
        self._done_before = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock; of an epoch that is gone on with, only what is done from here on is measured."""
        self._done_before = trainer.fit_loop.epoch_loop.batch_progress.current.completed
        self._began = self._last = time.monotonic()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the epoch's clock."""
        self._done_before = 0
        self._began = self._last = time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Print where training is, if the last line is long ago."""
        now = time.monotonic()
        if now - self._last < self._seconds or not trainer.is_global_zero:
            return
        self._last = now
        batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current  # this one is completed after all callbacks
        done, of = batches.processed, int(trainer.num_training_batches)
        speed = (done - self._done_before) / (now - self._began)
        print(
            f"  epoch {trainer.current_epoch + 1}, step {done}/{of}: {speed * self._rows_per_step:.1f} samples/s, "
            f"{(of - done) / speed:.0f} s left of the epoch",
            flush=True,
        )


ROOM_FOR_FIGURES = 120
"""Columns from which the bar has figures beside it."""


class SamplesProgressBar(RichProgressBar):
    """Lightning's rich bar, with texts per second instead of steps per second beside the remaining time.

    It takes one line, however narrow the terminal: a bar of several lines is drawn over the line of the epoch before.
    """

    def __init__(self, rows_per_step: int, rows_per_evaluation: int | None = None) -> None:
        super().__init__()
        self._rows_per_step = rows_per_step
        self._rows_per_evaluation = rows_per_step if rows_per_evaluation is None else rows_per_evaluation

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """Beside the bar, where there is room: the loss of the step and the figure that selects."""
        if shutil.get_terminal_size().columns < ROOM_FOR_FIGURES:
            return {}
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}

    def _get_train_description(self, current_epoch: int) -> str:
        counted = f"epoch {current_epoch + 1}/{self.trainer.max_epochs}"
        return f"{counted:{len(self.validation_description)}}"  # below each other, the bars begin at one place

    def configure_columns(self, trainer: L.Trainer) -> list[Any]:
        """Lightning's columns, the speed in samples/s; where there is no room the bar gives way: it is one line."""
        columns = [
            _SamplesPerSecond(self._rows) if type(column).__name__ == "ProcessingSpeedColumn" else column
            for column in super().configure_columns(trainer)
        ]
        for column in columns:
            if not isinstance(column, BarColumn):
                column._table_column = Column(no_wrap=True)
        return columns

    def _rows(self, task: Task) -> int:
        """Texts of a batch of what ``task`` shows."""
        evaluates = any(name in task.description for name in (self.validation_description, self.test_description))
        return self._rows_per_evaluation if evaluates else self._rows_per_step


class _SamplesPerSecond(ProgressColumn):
    def __init__(self, rows: Callable[[Task], int]) -> None:
        self._rows = rows
        super().__init__()

    def render(self, task: Task) -> Text:
        """At the pace of the last seconds, or of all so far where there are too few; nothing before a batch is done."""
        speed = task.speed or (task.completed / task.elapsed if task.elapsed else 0.0)
        return Text(f"{speed * self._rows(task):.1f} samples/s" if speed else "")
