"""metrics.csv while a run trains, for those who watch it: a search that stops trials early, or a person."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from peftlab.records.history import write_metrics_csv
from peftlab.training.module import TrainingModule


class WritesEpochs(Callback):
    """Writes the rows so far when training goes on after one; the last is written with the rest of the run's files."""

    def __init__(self, path: Path) -> None:
        self._path, self._written = path, 0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the history. A module's own row of an epoch is added after the callbacks' epoch end."""
        self._write(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Write it after a validation inside the epoch, too."""
        self._write(trainer, pl_module)

    def _write(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        if trainer.is_global_zero and len(pl_module.history) > self._written:
            write_metrics_csv(self._path, pl_module.history)
            self._written = len(pl_module.history)
