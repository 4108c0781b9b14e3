"""Seconds that a finished run's model takes for one text, as it is and with its adapter merged."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from statistics import median
from typing import Any

import torch
from torch import Tensor

from peftlab.config import RunConfig
from peftlab.data.module import TextDataModule
from peftlab.errors import PeftlabError, first_line
from peftlab.peft.adapter import Adapter
from peftlab.training.module import Batch, TrainingModule

_SHARDED = "no process has the whole model: trainer.strategy=fsdp"
TEXTS, WARM_UP = 20, 3
"""How many texts are timed, and how many are computed before."""


def latency(config: RunConfig, module: TrainingModule, adapter: Adapter, data: TextDataModule) -> dict[str, Any]:
    """``latency_seconds`` and ``latency_merged_seconds``: medians over texts of the test, each a batch of its own.

    Timed is the forward pass of a text that is tokenised and on the device. Weights and random state are those of
    before, to the bit. What cannot be merged has None, and ``latency_merged_reason`` says why.

    Args:
        config: the run's.
        module: with the weights that were tested.
        adapter: the module's.
        data: with the test.
    """
    if config.trainer.strategy == "fsdp":
        return {"latency_seconds": None, "latency_merged_seconds": None, "latency_merged_reason": _SHARDED}
    device = torch.device("cuda" if torch.cuda.is_available() and config.trainer.accelerator != "cpu" else "cpu")
    backbone, before, training = module.backbone, next(module.backbone.parameters()).device, module.training
    backbone.to(device)
    module.eval()
    batches = _batches(data, module, device)
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            found: dict[str, Any] = {"latency_seconds": _seconds(config, module, batches, device)}
            return found | _merged(config, module, adapter, batches, device)
    finally:
        module.train(training)
        backbone.to(before)


def _merged(
    config: RunConfig, module: TrainingModule, adapter: Adapter, batches: Sequence[Batch], device: torch.device
) -> dict[str, Any]:
    try:
        adapter.merge()
    except PeftlabError as error:
        return {"latency_merged_seconds": None, "latency_merged_reason": first_line(error)}
    try:
        return {"latency_merged_seconds": _seconds(config, module, batches, device)}
    finally:
        adapter.unmerge()


def _batches(data: TextDataModule, module: TrainingModule, device: torch.device) -> list[Batch]:
    """Texts of all places of the test, each a batch."""
    loader = data.test_dataloader()
    rows: Any = loader.dataset
    chosen = sorted({len(rows) * place // TEXTS for place in range(TEXTS)})
    return [module.transfer_batch_to_device(loader.collate_fn([rows[row]]), device, 0) for row in chosen]


@torch.inference_mode()
def _seconds(config: RunConfig, module: TrainingModule, batches: Sequence[Batch], device: torch.device) -> float:
    mixed = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(config.trainer.precision)
    taken = []
    with torch.autocast(device.type, dtype=mixed) if mixed is not None else nullcontext():
        for batch in (*batches[:WARM_UP], *batches):
            began = time.perf_counter()
            outputs: Tensor = module.computed(batch, smoothed=False)["outputs"]
            if outputs.device.type == "cuda":
                torch.cuda.synchronize(outputs.device)
            taken.append(time.perf_counter() - began)
    return median(taken[len(batches[:WARM_UP]) :])
