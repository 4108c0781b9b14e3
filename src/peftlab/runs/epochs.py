"""metrics.csv while a run trains, for those who watch it: a search that stops trials early, or a person."""

from __future__ import annotations

from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Callback

from peftlab.records.history import write_metrics_csv
from peftlab.training.module import TrainingModule


class WritesEpochs(Callback):
    """Writes the epochs so far when the next one starts; the last is written with the rest of the run's files."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the history. A module's own row of an epoch is added after the callbacks' epoch end."""
        if trainer.is_global_zero and isinstance(pl_module, TrainingModule) and pl_module.history:
            write_metrics_csv(self._path, pl_module.history)
