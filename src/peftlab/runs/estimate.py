"""What a run will take, before it runs: memory from shapes alone, then seconds and memory from a few real steps.

From shapes (:mod:`peftlab.runs.shapes`) nothing of the model's size is allocated; the few real steps say what the
machine at hand takes for them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from peftlab.allocator import keeping_memory
from peftlab.config import RunConfig
from peftlab.data.base import Splits
from peftlab.data.batching import EvaluationBatchSampler
from peftlab.data.module import TextDataModule
from peftlab.data.too_long import within_length
from peftlab.objectives.base import Objective
from peftlab.records.environment import peak_memory_mib, resident_mib
from peftlab.runs.assemble import Assembled, assemble, lightning_module
from peftlab.runs.batches import batches_a_step
from peftlab.runs.memory import memory_told
from peftlab.runs.shapes import Memory, Shape, Work, memory_of, on_meta
from peftlab.training.module import TrainingModule
from peftlab.training.ranks import world_size


@dataclass(frozen=True)
class Measured:
    """Of a few real steps on the machine at hand."""

    device: str
    step_seconds: float
    """A step of texts of the mean length."""
    train_seconds: float
    """All epochs, with the validation after each, of one process."""
    test_seconds: float
    peak_mib: float
    """Of the process on a CPU, with what it had before; allocated on a GPU."""


def work_of(config: RunConfig, data: TextDataModule) -> Work:
    """What ``config`` has to compute, in padded tokens of one process."""
    processes = world_size(config.trainer)
    loader: Any = data.train_dataloader().batch_sampler
    lengths = data.tokenized("train").lengths
    shapes = [(len(rows), int(lengths[rows].max())) for rows in loader.batches(0) if min(rows) >= 0]
    epochs, steps = config.trainer.max_epochs, -(-len(shapes) // batches_a_step(config)) // processes or 1
    if config.trainer.max_steps is not None and config.trainer.max_steps < steps * epochs:
        share = config.trainer.max_steps / (steps * epochs)
        epochs, total = max(1, round(epochs * share)), config.trainer.max_steps
    else:
        share, total = 1.0, steps * epochs
    every = config.trainer.validate_every_n_steps
    validations = epochs if every is None else epochs + total // every
    by_size = sorted(shapes, key=_size, reverse=True)
    evaluated = {split: _evaluation_shapes(config, data, split) for split in ("validation", "test")}
    return Work(
        steps=total,
        train_tokens=round(sum(b * t for b, t in shapes) * config.trainer.max_epochs * share / processes),
        validation_tokens=sum(b * t for b, t in evaluated["validation"]) * validations // processes,
        test_tokens=sum(b * t for b, t in evaluated["test"]) // processes,
        largest=by_size[0],
        largest_evaluation=max((s for one in evaluated.values() for s in one), key=_size),
        others=tuple(by_size[len(by_size) * part // 4] for part in (3, 2, 1)),
        targets=_targets(config, data, loader.batches(0)[0]),
    )


def _size(shape: Shape) -> int:
    return shape[0] * shape[1]


def _targets(config: RunConfig, data: TextDataModule, rows: list[int]) -> float | None:
    """Targets of a language model in a padded token of the batch of ``rows``."""
    learned = config.data.what_is_learned()
    if not (isinstance(learned, Objective) and learned.learns_tokens and learned.weighs):
        return None
    texts: Any = data.train_dataloader().dataset
    some = [texts[row] for row in rows]
    padded = len(some) * max(len(row["input_ids"]) for row in some)
    return sum(learned.weight(row) for row in some) / padded


def _evaluation_shapes(config: RunConfig, data: TextDataModule, split: Any) -> list[Shape]:
    lengths = data.tokenized(split).lengths
    sampler = EvaluationBatchSampler(lengths, config.data.eval_batch_size, group_by_length=config.data.group_by_length)
    return [(len(rows), int(lengths[rows].max())) for rows in sampler if min(rows) >= 0]


# -- from a few real steps -----------------------------------------------------------------------


@memory_told()
def measured(config: RunConfig, splits: Splits, data: TextDataModule, work: Work) -> Measured:
    """Two steps of the largest batch, three of others, and evaluation batches, on the device at hand."""
    assembled = assemble(config, splits)
    device = _device(config)
    assembled.backbone.to(device)
    module = lightning_module(config, assembled, splits)
    with keeping_memory(config.trainer.keep_memory):
        train_rate = _train_rate(config, assembled, module, data, device)
        evaluation_rate = _evaluation_rate(config, module, data, device)
    peak = peak_memory_mib()
    train_seconds = work.train_tokens / train_rate
    return Measured(
        device=str(device),
        step_seconds=train_seconds / max(1, work.steps),
        train_seconds=train_seconds + work.validation_tokens / evaluation_rate,
        test_seconds=work.test_tokens / evaluation_rate,
        peak_mib=peak["peak_gpu_mib"] if device.type == "cuda" else peak["peak_mib"],
    )


def _train_rate(
    config: RunConfig, assembled: Assembled, module: TrainingModule, data: TextDataModule, device: torch.device
) -> float:
    """Padded tokens a second; the first steps, of the largest batch, are not timed."""
    loader = data.train_dataloader()
    sampler: Any = loader.batch_sampler
    batches = sorted(sampler.batches(0), key=lambda rows: len(rows) * data.tokenized("train").lengths[rows].max())
    chosen = [batches[-1], batches[-1], *(batches[len(batches) * part // 4] for part in (1, 2, 3))]
    optimizer = config.optim.build(assembled.adapter.param_groups(config.optim.lr))
    module.train()
    tokens, seconds = 0, 0.0
    for number, rows in enumerate(chosen):
        batch = _moved(loader.collate_fn([loader.dataset[row] for row in rows]), device)
        began = time.perf_counter()
        with _autocast(config, device):
            loss = module.computed(batch)["loss"]
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        del loss  # and with it what its graph holds, before the next one is made
        _wait(device)
        if number >= 2:
            tokens, seconds = tokens + batch["input_ids"].numel(), seconds + time.perf_counter() - began
    return tokens / seconds


def _evaluation_rate(config: RunConfig, module: TrainingModule, data: TextDataModule, device: torch.device) -> float:
    module.eval()
    tokens, seconds = 0, 0.0
    loader = data.test_dataloader()
    sampler: Any = loader.batch_sampler
    of = len(sampler)
    for number in dict.fromkeys((0, of // 2, of - 1)):
        batch = _moved(loader.collate_fn([loader.dataset[row] for row in sampler.batch(number)]), device)
        began = time.perf_counter()
        with torch.inference_mode(), _autocast(config, device):
            module.computed(batch, smoothed=False)
        _wait(device)
        tokens, seconds = tokens + batch["input_ids"].numel(), seconds + time.perf_counter() - began
    return tokens / seconds


def _moved(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}


def _autocast(config: RunConfig, device: torch.device) -> Any:
    mixed = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(config.trainer.precision)
    return torch.autocast(device.type, dtype=mixed, enabled=mixed is not None)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _device(config: RunConfig) -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() and config.trainer.accelerator != "cpu" else "cpu")


def estimate(config: RunConfig, *, shapes: bool) -> tuple[Memory, Work, Measured | None, float]:
    """Memory from shapes, the work, what was measured (None: ``shapes`` alone), and the process's own MiB."""
    splits = config.data.load()
    outputs = config.data.what_is_learned().head_size(splits.label_names)
    plain = on_meta(config, outputs, train_texts=splits.train.texts)
    splits = within_length(config.data, splits, plain.tokenizer)
    data = TextDataModule(config.data, splits, plain.tokenizer, config.seed)
    work, process = work_of(config, data), resident_mib()
    # first what is asked of the allocator and never written to, of which no page is taken
    memory = memory_of(config, outputs, work, on_cpu=_device(config).type == "cpu")
    return memory, work, None if shapes else measured(config, splits, data, work), process
