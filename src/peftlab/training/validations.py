"""Validations inside an epoch, and the end of training that follows from one."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from peftlab.objectives.base import Figure
from peftlab.training.checkpoint import KeepsCheckpoints
from peftlab.training.config import TrainerConfig
from peftlab.training.inside_epoch import ends_epoch
from peftlab.training.selection import training_is_over


class Validates(Checkpoint):
    """Validates after every N optimizer steps, and ends training where its history says that it is over.

    An epoch's last step is left to the epoch's own validation: a run of N steps an epoch is one without N. What decides
    is the history alone, so a run that was killed after its last checkpoint ends there too when it is resumed.

    As a ``Checkpoint`` it is called after the module's own end of the epoch, which adds the row.
    """

    def __init__(self, config: TrainerConfig, monitor: Figure, keeps: KeepsCheckpoints) -> None:
        self._config, self._monitor, self._keeps = config, monitor, keeps

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End before the first step, if the run was resumed from its end."""
        self._end_if_over(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End after the epoch."""
        self._end_if_over(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Validate inside the epoch, if it is time: a row, and the best weights."""
        every, done = self._config.validate_every_n_steps, batch_idx + 1
        if every is None or done % trainer.accumulate_grad_batches or trainer.global_step % every:
            return
        if ends_epoch(trainer, pl_module, done):
            return
        _validate(trainer)
        module: Any = pl_module
        module.add_row_inside(done / int(trainer.num_training_batches))
        self._keeps.keep_best(trainer, pl_module)
        self._end_if_over(trainer, pl_module)
        if trainer.should_stop:  # the epoch ends here, and its validation is done
            trainer.fit_loop.epoch_loop._skip_next_val = True

    def _end_if_over(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        history: Any = pl_module.history
        if training_is_over(history, self._config, self._monitor):
            trainer.should_stop = True


def _validate(trainer: L.Trainer) -> None:
    """Run the validation as Lightning does at an epoch's end, and leave the loop over training as it was."""
    connector = trainer._logger_connector
    first = connector._first_loop_iter
    trainer.validating = True
    trainer.fit_loop.epoch_loop.val_loop.run()
    trainer.training = True
    connector._first_loop_iter = first
