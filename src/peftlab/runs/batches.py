"""How many batches a run's optimizer step has."""

from __future__ import annotations

from peftlab.config import RunConfig
from peftlab.data.batching import micro_batches
from peftlab.training.ranks import world_size


def batches_a_step(config: RunConfig) -> int:
    """Batches of each process in a step."""
    data, trainer = config.data, config.trainer
    if data.global_batch_size is None:
        return trainer.accumulate_grad_batches
    return micro_batches(data.global_batch_size, data.batch_size, world_size(trainer))


def rows_of_a_batch(config: RunConfig) -> int:
    """Texts of a batch in all processes."""
    data = config.data
    if data.global_batch_size is None:
        return data.batch_size * world_size(config.trainer)
    return -(-data.global_batch_size // batches_a_step(config))
