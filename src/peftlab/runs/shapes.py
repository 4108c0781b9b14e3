"""A run's memory from shapes alone: its steps gone through with tensors that have no memory.

The model is built without its weights; steps (forward, backward, optimizer) and a forward pass of the largest
evaluation batch are gone through with tensors that have a shape and no memory, while each storage that comes and goes
is counted. This sees dropout, adapters, gradient checkpointing, which attention torch takes, and of a language model
the logits in front of targets. What a kernel needs inside of itself it does not see.

On a CPU a second thing takes memory. glibc cuts an aligned block out of one that is larger by the alignment, and gives
the slivers in front of blocks to small objects: a block that is freed is then a few bytes too small for the next tensor
of the same size, and waits for smaller ones. How much this comes to follows from sizes and order, so the same sizes are
asked of this process's own allocator, in the same order, and never written to (:class:`peftlab.allocator.Room`): the
pages that it hands out are about as many as a run's (with ``trainer.keep_memory=false`` somewhat fewer are kept).
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from peftlab.allocator import Room, keeping_memory
from peftlab.backbones.base import Backbone
from peftlab.config import RunConfig
from peftlab.peft.adapter import Adapter
from peftlab.peft.base import attach
from peftlab.training.precision import into_precision
from peftlab.training.ranks import world_size
from peftlab.training.trunk import FrozenTrunk
from peftlab.training.trunk_cache import BATCH

MIB = 2**20
_QUANTIZED = {"nf4": 0.5 + 4 / 64, "fp4": 0.5 + 4 / 64, "int8": 1.0}
"""Bytes of a weight in bitsandbytes' forms, with a float32 scale for 64 of them."""
Shape = tuple[int, int]
"""Rows of a batch, and tokens of its longest."""


@dataclass(frozen=True)
class Work:
    """Rows and tokens of a run, and its largest batches as (rows, tokens of the longest)."""

    steps: int
    train_tokens: int
    validation_tokens: int
    test_tokens: int
    largest: Shape
    largest_evaluation: Shape
    others: tuple[Shape, ...] = ()
    """Some of the other training batches, smaller ones first."""
    targets: float | None = None
    """Of a language model, the targets in a padded token of its batches; None: they are not counted."""


@dataclass(frozen=True)
class Memory:
    """MiB of one device, from shapes."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    """What a step of the largest batch has beside these at its largest: kept for backward, and in between."""
    evaluation: float
    """The same of the largest evaluation batch, or of computing the frozen blocks once."""
    allocator: float
    """What a CPU's allocator keeps beside, in blocks that nothing fits into; 0 where it is not known, as on GPUs."""

    @property
    def total(self) -> float:
        """The largest that they are together, without the process itself and what its allocator keeps beside."""
        return self.weights + max(self.gradients + self.optimizer + self.activations, self.evaluation)

    def on_cpu(self, process: float) -> float:
        """The largest resident memory of a run on a CPU, whose process has ``process`` without a model."""
        return process + self.total + self.allocator


def on_meta(config: RunConfig, outputs: int, **more: Any) -> Backbone:
    """The backbone of ``config`` without weights; ``outputs``: of a new head."""
    if config.data.what_is_learned().head == "own":
        more["head"] = "own"
    return config.backbone.build(outputs, seed=config.seed, device="meta", **more)


def memory_of(config: RunConfig, outputs: int, work: Work, *, on_cpu: bool = True) -> Memory:
    """From shapes, for each device; nothing of the model's size is allocated.

    Args:
        config: the run's.
        outputs: of the head.
        work: its batches.
        on_cpu: whether it will run on a CPU, whose allocator is then asked.
    """
    backbone = on_meta(config, outputs)
    adapter = attach(backbone, config.peft, seed=config.seed, train_head=config.trains_head)
    into_precision(backbone, config.trainer.precision)
    weights, trained = _weight_bytes(config, backbone, adapter), adapter.parameters(beside=True)
    gradients = sum(p.numel() * p.element_size() for p in trained)
    with FakeTensorMode(allow_non_fake_inputs=True), keeping_memory(on_cpu):
        room = Room.here() if on_cpu else None
        backbone.to_empty(device="cpu")
        live = Live((*backbone.parameters(), *backbone.buffers()), room)
        optimizer = config.optim.build(adapter.param_groups(config.optim.lr))
        with _shapes_alone(config, adapter):
            step = _Step(config, adapter, work.targets)
            backbone.train()
            # Smaller ones first: what they leave free is too small for larger ones. From the second step on the
            # optimizer has its states.
            for shape in (*work.others, work.largest, work.largest):
                with live:
                    step.trained(shape)
                    optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            trained_peak = live.peak
            states = sum(t.numel() * t.element_size() for t in _tensors(optimizer.state))
            backbone.eval()
            live.peak = live.now
            with live, torch.no_grad():
                step.tested(work.largest_evaluation)
                if step.trunk is not None:
                    step.trunk.compute(*_ids((BATCH, work.largest[1])))
            evaluation = live.peak
        largest = max(trained_peak, evaluation)
        kept_beside = 0.0 if room is None else max(0.0, room.pages - largest)
        live.close()
    buckets = gradients if world_size(config.trainer) > 1 else 0  # DDP's, which the gradients are reduced in
    return Memory(
        weights=weights / MIB,
        gradients=(gradients + buckets) / MIB,
        optimizer=states / MIB,
        activations=max(0, trained_peak - gradients - states) / MIB,
        evaluation=evaluation / MIB,
        allocator=kept_beside / MIB,
    )


class _Step:
    """What a run computes of a batch, on shapes."""

    def __init__(self, config: RunConfig, adapter: Adapter, targets: float | None) -> None:
        self.backbone = adapter.backbone
        self.targets = targets if self.backbone.says_next_tokens else None
        self.trunk: FrozenTrunk | None = None
        if getattr(config.backbone, "cache_frozen", False):
            self.trunk = FrozenTrunk(adapter, _ids((2, 4)), shapes_alone=True)

    def trained(self, shape: Shape) -> None:
        """Forward and backward."""
        given = nullcontext() if self.trunk is None else self.trunk.given(self.trunk.stand_in(shape))
        with given:
            loss = self._loss(shape)
        loss.backward()  # type: ignore[no-untyped-call]

    def tested(self, shape: Shape) -> None:
        """Forward."""
        self._loss(shape)

    def _loss(self, shape: Shape) -> Tensor:
        if self.targets is None:
            return self.backbone(*_ids(shape)).float().square().mean()  # type: ignore[no-any-return]
        count = max(1, round(self.targets * shape[0] * shape[1]))
        with _first_places(self.backbone, count):
            outputs = self.backbone(*_ids(shape))[0]
        said = torch.zeros(count, dtype=torch.int64)
        loss = F.cross_entropy(outputs, said)
        F.cross_entropy(outputs.detach(), said, reduction="none")  # the step's figures
        return loss


@contextmanager
def _first_places(backbone: Any, count: int) -> Iterator[None]:
    """Inside, the head sees ``count`` places of a batch alone, as it does where a mask picks those with a target."""
    layer: nn.Module = backbone.model.get_output_embeddings()

    def picked(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        flat = inputs[0].reshape(-1, inputs[0].shape[-1])
        return (flat[:count].clone()[None], *inputs[1:])

    handle = layer.register_forward_pre_hook(picked)
    try:
        yield
    finally:
        handle.remove()


class Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the storages that are made inside of it, until they are gone.

    Args:
        there: tensors that are there before; views of them are no new storage.
        room: an allocator, that is asked for the same sizes.
    """

    def __init__(self, there: Iterable[Tensor] = (), room: Room | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._room = room
        self._there = [tensor.untyped_storage() for tensor in there]  # held, so that no other has their id
        self._known: dict[int, tuple[int, int]] = {id(storage): (0, 0) for storage in self._there}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._see, out)
        return out

    def _see(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if id(storage) not in self._known:
            size = storage.nbytes()
            self._known[id(storage)] = (size, 0 if self._room is None else self._room.take(size))
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, id(storage))
        return tensor

    def _forget(self, storage: int) -> None:
        size, address = self._known.pop(storage, (0, 0))
        self.now -= size
        if self._room is not None:
            self._room.give(address)

    def close(self) -> None:
        """Give back what the allocator was asked for, of tensors that are still there too."""
        for storage in list(self._known):
            self._forget(storage)


@contextmanager
def _shapes_alone(config: RunConfig, adapter: Adapter) -> Iterator[None]:
    mixed = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(config.trainer.precision)
    with (
        adapter.backbone.without_a_look(full=False),
        torch.autocast("cpu", dtype=mixed, enabled=mixed is not None),
    ):
        yield


def _ids(shape: Shape) -> tuple[Tensor, Tensor]:
    return torch.zeros(shape, dtype=torch.int64), torch.ones(shape, dtype=torch.int64)


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
