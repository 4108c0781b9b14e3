"""The losses of a run's first training batches, for methods that start from gradients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from peftlab.backbones.base import Backbone
from peftlab.config import RunConfig
from peftlab.data.base import Splits
from peftlab.data.batching import weight_of
from peftlab.data.module import TextDataModule
from peftlab.peft.adapter import Adapter
from peftlab.peft.gradients import TrainingLosses
from peftlab.training.module import TrainingModule
from peftlab.training.ranks import world_size


def first_losses(config: RunConfig, backbone: Backbone, splits: Splits) -> TrainingLosses:
    """Losses of the clean ``backbone`` on the first batches of the first epoch, in the order of the run's seed.

    The same in every process. Of a run in one process they are computed where it will train, else on the CPU: what
    further processes start from is sent to them.
    """

    def losses(count: int) -> Iterator[tuple[Tensor, float]]:
        data = TextDataModule(config.data, splits, backbone.tokenizer, config.seed)
        loader = data.train_dataloader()
        sampler: Any = loader.batch_sampler
        module = TrainingModule(
            Adapter(config.peft, backbone),
            config.optim,
            config.schedule,
            objective=config.data.what_is_learned(),
            label_names=splits.label_names,
            tasks=splits.tasks,
            seed=config.seed,
            label_smoothing=config.trainer.label_smoothing,
        ).eval()
        device = _device(config)
        home = next(backbone.parameters()).device
        backbone.to(device)
        try:
            for rows in sampler.batches(0)[:count]:
                batch = loader.collate_fn([loader.dataset[row] for row in rows])
                weight = float(weight_of(batch))
                if weight:
                    yield module.computed(module.transfer_batch_to_device(batch, device, 0))["loss"], weight
        finally:
            backbone.to(home)

    return losses


def _device(config: RunConfig) -> torch.device:
    on_gpu = torch.cuda.is_available() and config.trainer.accelerator != "cpu" and world_size(config.trainer) == 1
    return torch.device("cuda" if on_gpu else "cpu")
