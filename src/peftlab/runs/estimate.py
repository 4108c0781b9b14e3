"""What a run will take, before it runs: memory from shapes alone, then seconds and memory from a few real steps.

From shapes: the model is built without its weights, and a step of the largest batch (forward, backward, optimizer) and
a forward pass of the largest evaluation batch are gone through with tensors that have a shape and no memory, while each
storage that comes and goes is counted. This sees dropout, adapters, gradient checkpointing and which attention torch
takes. It does not see what an allocator keeps beside: on a CPU, with dropout inside attention, a third more was
measured. The few real steps do, on the machine that they run on.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from peftlab.allocator import keeping_memory
from peftlab.config import RunConfig
from peftlab.data.base import Splits
from peftlab.data.batching import EvaluationBatchSampler
from peftlab.data.module import TextDataModule
from peftlab.data.too_long import within_length
from peftlab.peft.adapter import Adapter
from peftlab.peft.base import attach
from peftlab.records.environment import peak_memory_mib, resident_mib
from peftlab.runs.assemble import Assembled, assemble, lightning_module
from peftlab.runs.batches import batches_a_step
from peftlab.runs.memory import memory_told
from peftlab.training.module import TrainingModule
from peftlab.training.precision import in_full, into_precision
from peftlab.training.ranks import world_size

MIB = 2**20
_QUANTIZED = {"nf4": 0.5 + 4 / 64, "fp4": 0.5 + 4 / 64, "int8": 1.0}
"""Bytes of a weight in bitsandbytes' forms, with a float32 scale for 64 of them."""


@dataclass(frozen=True)
class Memory:
    """MiB of one device, from shapes."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    """What a step of the largest batch has beside these at its largest: kept for backward, and in between."""
    evaluation: float
    """The same of the largest evaluation batch."""

    @property
    def total(self) -> float:
        """The largest that they are together, without the process itself."""
        return self.weights + max(self.gradients + self.optimizer + self.activations, self.evaluation)


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


@dataclass(frozen=True)
class Work:
    """Rows and tokens of a run, and its largest batches as (rows, tokens of the longest)."""

    steps: int
    train_tokens: int
    validation_tokens: int
    test_tokens: int
    largest: tuple[int, int]
    largest_evaluation: tuple[int, int]


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
    evaluated = {split: _evaluation_shapes(config, data, split) for split in ("validation", "test")}
    return Work(
        steps=total,
        train_tokens=round(sum(b * t for b, t in shapes) * config.trainer.max_epochs * share / processes),
        validation_tokens=sum(b * t for b, t in evaluated["validation"]) * validations // processes,
        test_tokens=sum(b * t for b, t in evaluated["test"]) // processes,
        largest=max(shapes, key=lambda shape: shape[0] * shape[1]),
        largest_evaluation=max((s for one in evaluated.values() for s in one), key=lambda shape: shape[0] * shape[1]),
    )


def _evaluation_shapes(config: RunConfig, data: TextDataModule, split: Any) -> list[tuple[int, int]]:
    lengths = data.tokenized(split).lengths
    sampler = EvaluationBatchSampler(lengths, config.data.eval_batch_size, group_by_length=config.data.group_by_length)
    return [(len(rows), int(lengths[rows].max())) for rows in sampler if min(rows) >= 0]


# -- from shapes ---------------------------------------------------------------------------------


def memory_of(config: RunConfig, outputs: int, work: Work) -> Memory:
    """From shapes, for each device; nothing of the model's size is allocated.

    Args:
        config: the run's.
        outputs: of the head.
        work: its batches.
    """
    backbone = config.backbone.build(outputs, seed=config.seed, device="meta")
    adapter = attach(backbone, config.peft, seed=config.seed, train_head=config.trains_head)
    into_precision(backbone, config.trainer.precision)
    weights, trained = _weight_bytes(config, backbone, adapter), adapter.parameters(beside=True)
    gradients = sum(p.numel() * p.element_size() for p in trained)
    live = _Live()
    with FakeTensorMode(allow_non_fake_inputs=True):
        backbone.to_empty(device="cpu")
        optimizer = config.optim.build(adapter.param_groups(config.optim.lr))
        backbone.train()
        for _ in range(2):  # in the second the optimizer has its states
            with live, _shapes_alone(config, adapter):
                live.peak = live.now
                loss = backbone(*_ids(work.largest)).float().square().mean()
                loss.backward()
                del loss
            with live:
                _step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        trained_peak = live.peak
        states = sum(t.numel() * t.element_size() for t in _tensors(optimizer.state))
        backbone.eval()
        live.peak = live.now
        with live, torch.no_grad(), _shapes_alone(config, adapter):
            backbone(*_ids(work.largest_evaluation))
        evaluation = live.peak
    buckets = gradients if world_size(config.trainer) > 1 else 0  # DDP's, which the gradients are reduced in
    return Memory(
        weights=weights / MIB,
        gradients=(gradients + buckets) / MIB,
        optimizer=states / MIB,
        activations=max(0, trained_peak - gradients - states) / MIB,
        evaluation=evaluation / MIB,
    )


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the storages that are made inside of it, until they are gone."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._see, out)
        return out

    def _see(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if id(storage) not in self._known:
            self._known[id(storage)] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, id(storage))
        return tensor

    def _forget(self, storage: int) -> None:
        self.now -= self._known.pop(storage)


@contextmanager
def _shapes_alone(config: RunConfig, adapter: Adapter) -> Iterator[None]:
    mixed = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(in_full(config.trainer.precision))
    with (
        adapter.backbone.without_a_look(full=False),
        torch.autocast("cpu", dtype=mixed, enabled=mixed is not None),
    ):
        yield


def _ids(shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    return torch.zeros(shape, dtype=torch.int64), torch.ones(shape, dtype=torch.int64)


def _step(optimizer: torch.optim.Optimizer) -> None:
    optimizer.step()


def _tensors(state: Any) -> Iterator[Tensor]:
    return (value for of_one in state.values() for value in of_one.values() if isinstance(value, Tensor))


def _weight_bytes(config: RunConfig, backbone: Any, adapter: Adapter) -> float:
    """Of all parameters and buffers on one device: in 4 or 8 bits, and cut over the processes, where they are."""
    trains = set(map(id, adapter.parameters(beside=True)))
    linear = {id(m.weight) for m in backbone.model.modules() if isinstance(m, nn.Linear)}
    linear -= {id(parameter) for _, parameter in backbone.head_parameters()}
    a_weight = _QUANTIZED.get(config.backbone.quantize or "")
    sharded = world_size(config.trainer) if config.trainer.strategy == "fsdp" else 1
    total = 0.0
    for tensor in (*backbone.parameters(), *backbone.buffers()):
        size = tensor.numel() * tensor.element_size()
        if id(tensor) in trains:
            total += size
        else:
            quantized = a_weight is not None and id(tensor) in linear
            total += (tensor.numel() * a_weight if quantized and a_weight is not None else size) / sharded
    return total


# -- from a few real steps -----------------------------------------------------------------------


@memory_told()
def measured(config: RunConfig, splits: Splits, data: TextDataModule, work: Work) -> Measured:
    """Two steps of the largest batch, three of others, and evaluation batches, on the device at hand."""
    assembled = assemble(config, splits)
    device = torch.device("cuda" if torch.cuda.is_available() and config.trainer.accelerator != "cpu" else "cpu")
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
    mixed = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(in_full(config.trainer.precision))
    return torch.autocast(device.type, dtype=mixed, enabled=mixed is not None)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def estimate(config: RunConfig, *, shapes: bool) -> tuple[Memory, Work, Measured | None, float]:
    """Memory from shapes, the work, what was measured (None: ``shapes`` alone), and the process's own MiB."""
    splits = config.data.load()
    outputs = config.data.what_is_learned().head_size(splits.label_names)
    plain = config.backbone.build(outputs, seed=config.seed, train_texts=splits.train.texts, device="meta")
    splits = within_length(config.data, splits, plain.tokenizer)
    data = TextDataModule(config.data, splits, plain.tokenizer, config.seed)
    work, process = work_of(config, data), resident_mib()
    # first what is real, so that its peak is its own
    found = None if shapes else measured(config, splits, data, work)
    return memory_of(config, outputs, work), work, found, process
