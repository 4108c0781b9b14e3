"""Checkpoints inside an epoch: by steps, by minutes, and when a signal asks the run to end.

A resumed run ends with the same bits because nothing random is in them: the order of the batches is a function of
(seed, epoch), dropout of (seed, epoch, batch, rank). Beside what an epoch's checkpoint holds they have the place,

    {"epoch": from 0, "batches": done of it, "ranks": [what each process has summed up in the epoch so far]}

and they are written at whole optimizer steps only, when no gradient is pending. An epoch's last batch has none: the
epoch's own comes after validation, which a checkpoint before it would leave out.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint

from peftlab.signals import ASKED, Interrupted
from peftlab.training.config import TrainerConfig
from peftlab.training.places import remove_older, step_checkpoint

TOGETHER_SECONDS = 1.0
"""How often several processes ask each other whether one was told to end, or time is over: it takes a collective."""


def ends_epoch(trainer: L.Trainer, pl_module: L.LightningModule, done: int) -> bool:
    """Whether the epoch ends with its batch number ``done``, from 1: its last, or training is over."""
    most: Any = getattr(pl_module, "max_steps", None)
    last = most is not None and trainer.global_step >= most
    return done >= trainer.num_training_batches or last or trainer.should_stop


class Travels(Protocol):
    """What adds something up over an epoch, in each process."""

    def inside_epoch(self) -> Any:
        """What it has so far, as plain containers and tensors."""

    def go_on(self, so_far: Any) -> None:
        """Go on from what :meth:`inside_epoch` has returned."""


class KeepsSteps(Checkpoint):
    """Writes ``epoch-E-batch-B.ckpt``, of which the last two stay, and goes on from one."""

    def __init__(self, folder: Path, config: TrainerConfig, travels: Mapping[str, Travels]) -> None:
        self._folder, self._travels = folder, travels
        self._steps = config.checkpoint_every_n_steps
        self._seconds = 60 * config.checkpoint_every_minutes if config.checkpoint_every_minutes else float("inf")
        self._saved_at = time.monotonic()
        self._batches = 0
        self._so_far: list[dict[str, Any]] | None = None
        self._together = _Together()

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep what the processes had summed up, until they are where it belongs."""
        self._so_far = checkpoint.get("place", {}).get("ranks")

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the place, inside an epoch."""
        if self._batches:
            ranks = _gathered({name: one.inside_epoch() for name, one in self._travels.items()}, trainer.world_size)
            checkpoint["place"] = {"epoch": trainer.current_epoch, "batches": self._batches, "ranks": ranks}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Go on inside the epoch; from here on signals are looked at between steps."""
        if self._so_far is not None:
            mine, self._so_far = self._so_far[trainer.global_rank], None
            for name, one in self._travels.items():
                one.go_on(mine[name])
        self._saved_at = time.monotonic()
        ASKED.at_steps = True
        self._end_between(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save, if it is time.

        Raises:
            Interrupted: if a signal has asked for it, in all processes after the same step.
        """
        done = batch_idx + 1
        if done % trainer.accumulate_grad_batches or ends_epoch(trainer, pl_module, done):
            return
        due = time.monotonic() - self._saved_at >= self._seconds
        number = ASKED.number or 0
        if trainer.world_size > 1:
            due, number = self._together.agreed(trainer, due, number)
        if number or due or (self._steps is not None and trainer.global_step % self._steps == 0):
            self._save(trainer, done)
        if number:
            where = f"after batch {done} of epoch {trainer.current_epoch + 1}"
            raise Interrupted(number, f"the same command goes on {where}")

    def _save(self, trainer: L.Trainer, done: int) -> None:
        path = step_checkpoint(self._folder, trainer.current_epoch, done)
        self._batches = done
        try:
            trainer.save_checkpoint(path)
        finally:
            self._batches = 0
        if trainer.is_global_zero:
            remove_older(self._folder, path, keep=1)
        self._saved_at = time.monotonic()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The epoch before has its checkpoint: the run may end here."""
        self._saved_at = time.monotonic()
        self._end_between(trainer)

    def on_validation_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Validation is not waited for."""
        self._end_between(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """From here on signals end the run at once."""
        self._end_between(trainer)
        if trainer.is_global_zero:
            ASKED.at_steps = False

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """As at the end."""
        if trainer.is_global_zero:
            ASKED.at_steps = False

    @staticmethod
    def _end_between(trainer: L.Trainer) -> None:
        """Where no process waits for a step, rank 0 ends, and the others with it; they do not end before it."""
        if trainer.is_global_zero:
            ASKED.check()


class _Together:
    """Several processes act after the same step: one small reduction about every second, however long a step takes."""

    def __init__(self) -> None:
        self._next = 0
        self._asked_at, self._asked_after = time.monotonic(), 0

    def agreed(self, trainer: L.Trainer, due: bool, number: int) -> tuple[bool, int]:
        """Whether rank 0's time is over, and the signal that any process has heard; between askings neither."""
        step = trainer.global_step
        if step < self._next:
            return False, 0
        mine = [int(due), self._steps_of_a_while(step)] if trainer.is_global_zero else [0, 0]
        said = torch.tensor([number, *mine], device=trainer.strategy.root_device)
        number, late, more = (int(one) for one in trainer.strategy.reduce(said, reduce_op="max").tolist())
        self._next = step + more
        return bool(late), number

    def _steps_of_a_while(self, step: int) -> int:
        now = time.monotonic()
        seconds, steps = now - self._asked_at, step - self._asked_after
        self._asked_at, self._asked_after = now, step
        return max(1, int(TOGETHER_SECONDS * steps / max(seconds, 1e-6))) if self._next else 1


def _gathered(mine: dict[str, Any], processes: int) -> list[Any]:
    """What all processes have, by rank; complete in rank 0, which writes."""
    if processes == 1:
        return [mine]
    ranks: list[Any] = [None] * processes
    torch.distributed.all_gather_object(ranks, mine)
    return ranks
