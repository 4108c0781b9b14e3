"""Forward and backward pass of a step, recorded once as a CUDA graph and replayed: the same kernels, without Python.

A step of a small model is a thousand launches of a few microseconds each, and the device waits for them. A graph is
launched as one. What is replayed are the very kernels that ran when it was recorded, on the same addresses: a batch is
copied into the inputs of the graph of its shape, and gradients are copied out into buffers that all graphs share.
Dropout draws anew in each replay, from the generator's seed, as it does without a graph.

The bits are those of the plain step, and that is not assumed: a shape's second batch is computed in the plain way,
then recorded, and the graph is kept only if loss, outputs and all gradients of that batch are equal to the bit. A shape
whose graph differs, or that cannot be recorded (a step that waits for the device, or decides something on the host), is
computed in the plain way ever after, and a line says so.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor

from peftlab.data.batching import FULL

if TYPE_CHECKING:
    from peftlab.training.module import TrainingModule

MOST = 64
"""Graphs of one run: each takes a few MiB beside the memory that they share."""

Batch = Mapping[str, Any]
Computed = dict[str, Tensor]
Compute = Callable[[Batch], Computed]
"""A batch to named tensors, of which ``loss`` is to be differentiated."""


class Recorded(Protocol):
    """Work that can be repeated."""

    def replay(self) -> None:
        """Do it again, with what is in its inputs now."""


class Recorder(Protocol):
    """Whatever records work of the device."""

    def record(self, work: Callable[[], None]) -> Recorded:
        """Record ``work`` without doing it.

        Raises:
            RuntimeError: if it cannot be recorded.
        """

    def random_state(self) -> Tensor:
        """Where the device's generator is."""

    def set_random_state(self, state: Tensor) -> None:
        """Put the device's generator there."""


class CudaRecorder:
    """Records CUDA graphs, whose memory is one pool: they are replayed one after the other."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None

    def record(self, work: Callable[[], None]) -> Recorded:
        """See :class:`Recorder`."""
        graph = torch.cuda.CUDAGraph()
        torch.clear_autocast_cache()  # what a trained weight was cast to before would be taken for good
        try:
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                work()
        finally:
            torch.clear_autocast_cache()
        self._pool = self._pool or graph.pool()
        return graph

    def random_state(self) -> Tensor:
        """See :class:`Recorder`."""
        return torch.cuda.get_rng_state(self._device)

    def set_random_state(self, state: Tensor) -> None:
        """See :class:`Recorder`."""
        torch.cuda.set_rng_state(state, self._device)


@dataclass(frozen=True)
class _Graph:
    inputs: dict[str, Tensor]
    outputs: Computed
    used: tuple[bool, ...]
    """Which parameters have a gradient."""
    recorded: Recorded

    def replay(self, batch: Batch) -> None:
        for name, tensor in self.inputs.items():
            tensor.copy_(batch[name], non_blocking=True)
        self.recorded.replay()


class GraphedSteps:
    """Steps by graphs, where they can be had.

    Args:
        compute: the forward pass.
        recorded: what is recorded of it: the same, without a look at the device.
        parameters: all that trains, as the optimizer has it.
        recorder: of the device.
        say: takes a line for people.
    """

    def __init__(
        self,
        compute: Compute,
        recorded: Compute,
        parameters: Sequence[Tensor],
        recorder: Recorder,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self._compute, self._to_record = compute, recorded
        self._parameters = list(parameters)
        self._recorder = recorder
        self._say = say or _to_stderr
        self._seen: Counter[Any] = Counter()
        self._graphs: dict[Any, _Graph | None] = {}
        self._buffers: list[Tensor] = []
        self._gradients: list[Tensor | None] | None = None
        self.replayed = 0
        """Steps that a graph has done."""

    def step(self, batch: Batch, batches: int) -> Computed | None:
        """Forward and backward pass of ``batch``; None if it is to be done in the plain way.

        Args:
            batch: tensors on the device, and flags.
            batches: of an optimizer step, k; the loss that is differentiated is a k-th.

        Returns:
            what ``compute`` returns, detached; :meth:`give_gradients` has the gradients.
        """
        key = _key(batch, batches)
        if batches > 1:
            self._keep_gradients()
        if key in self._graphs:
            graph = self._graphs[key]
            if graph is None:
                return None
            graph.replay(batch)
            self.replayed += 1
            self._gradients = [b if used else None for b, used in zip(self._buffers, graph.used, strict=True)]
            return {name: tensor.clone() for name, tensor in graph.outputs.items()}
        self._seen[key] += 1
        if self._seen[key] < 2 or len(self._graphs) >= MOST:
            return None
        return self._recorded(key, batch, batches)

    def give_gradients(self) -> bool:
        """Add the gradients of the last :meth:`step` to those of the parameters; False if there was none."""
        gradients, self._gradients = self._gradients, None
        if gradients is None:
            return False
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            if gradient is None:
                continue
            if parameter.grad is None:
                parameter.grad = gradient
            else:
                parameter.grad.add_(gradient)
        return True

    def _keep_gradients(self) -> None:
        """Let gradients of earlier batches of an optimizer step be no buffers, which a replay writes into."""
        buffers = set(map(id, self._buffers))
        for parameter in self._parameters:
            if parameter.grad is not None and id(parameter.grad) in buffers:
                parameter.grad = parameter.grad.clone()

    def _recorded(self, key: Any, batch: Batch, batches: int) -> Computed:
        """The plain step, and the attempt to record it."""
        host, device = _host_random(), self._recorder.random_state()
        outputs, gradients = self._done(self._compute, batch, batches)
        after = self._recorder.random_state()
        self._gradients = gradients
        self._graphs[key] = None
        if _host_random() != host:
            self._refuse(key, "it draws random numbers on the host")
            return outputs
        try:
            graph = self._record(batch, batches, gradients)
        except Exception as error:
            self._refuse(key, (str(error).strip() or type(error).__name__).splitlines()[0])
            return outputs
        finally:
            self._recorder.set_random_state(after)
        self._recorder.set_random_state(device)
        graph.replay(batch)
        self._recorder.set_random_state(after)
        found = [b if used else None for b, used in zip(self._buffers, graph.used, strict=True)]
        if difference := _difference(outputs, graph.outputs, gradients, found):
            self._refuse(key, difference)
        else:
            self._graphs[key] = graph
        return outputs

    def _done(self, compute: Compute, batch: Batch, batches: int) -> tuple[Computed, list[Tensor | None]]:
        """What is computed of a batch, detached, and the gradients."""
        computed = compute(batch)
        share = computed["loss"] / batches
        with torch.autocast(share.device.type, enabled=False):  # as Lightning: its backward pass is outside of it
            gradients = torch.autograd.grad(share, self._parameters, allow_unused=True)
        return {name: tensor.detach() for name, tensor in computed.items()}, list(gradients)

    def _record(self, batch: Batch, batches: int, gradients: Sequence[Tensor | None]) -> _Graph:
        inputs = {name: value.clone() for name, value in batch.items() if isinstance(value, Tensor)}
        if not self._buffers:
            self._buffers = [torch.zeros_like(parameter) for parameter in self._parameters]
        outputs: Computed = {}

        def work() -> None:
            computed, found = self._done(self._to_record, {**batch, **inputs}, batches)
            outputs.update(computed)
            pairs = [(b, g) for b, g in zip(self._buffers, found, strict=True) if g is not None]
            torch._foreach_copy_([buffer for buffer, _ in pairs], [gradient for _, gradient in pairs])

        recorded = self._recorder.record(work)
        return _Graph(inputs, outputs, tuple(gradient is not None for gradient in gradients), recorded)

    def _refuse(self, key: Any, reason: str) -> None:
        shape = dict(key[0]).get("input_ids", ((), None))[0]
        self._say(f"trainer.cuda_graphs: batches of {tuple(shape)} are computed without a graph: {reason}")


def _key(batch: Batch, batches: int) -> Any:
    """What a graph holds for: shapes and types of all tensors, all flags, and the share of the loss."""
    tensors = tuple((n, (tuple(v.shape), v.dtype)) for n, v in sorted(batch.items()) if isinstance(v, Tensor))
    flags = tuple((name, value) for name, value in sorted(batch.items()) if not isinstance(value, Tensor))
    return tensors, flags, batches


def _host_random() -> tuple[Any, ...]:
    """Where the generators of the host are: who draws from them decides something that a graph would repeat."""
    numpy: Any = np.random.get_state()
    return bytes(torch.get_rng_state().numpy()), random.getstate(), numpy[1].tobytes(), numpy[2]


def _difference(
    plain: Computed, graphed: Computed, gradients: Sequence[Tensor | None], found: Sequence[Tensor | None]
) -> str:
    """What a graph computes otherwise than the plain step, in words; empty: nothing."""
    pairs = [(name, plain[name], graphed[name]) for name in plain]
    pairs += [("a gradient", a, b) for a, b in zip(gradients, found, strict=True) if a is not None and b is not None]
    for name, a, b in pairs:
        if not (torch.equal(a, b) or torch.equal(a.nan_to_num(), b.nan_to_num())):
            return f"{name} would differ, by {(a - b).abs().nan_to_num().max().item():.1e}"
    return ""


def _to_stderr(line: str) -> None:
    print(f"peftlab: {line}.", file=sys.stderr, flush=True)


def graphed_steps(module: TrainingModule, recorder: Recorder | None = None) -> GraphedSteps | None:
    """What records the steps of ``module``, whose training begins; None, with a line, where it cannot be.

    Args:
        module: with its trainer.
        recorder: of another device than a GPU.
    """
    if reason := _reason_against(module, needs_gpu=recorder is None):
        _to_stderr(f"trainer.cuda_graphs=true has no effect: {reason}")
        return None

    def without_a_look(batch: Batch) -> Computed:
        if module.compiled:  # what is compiled does not look
            return module.computed(dict(batch))
        with module.backbone.without_a_look(full=batch[FULL]):
            return module.computed(dict(batch))

    groups = module.trainer.optimizers[0].param_groups
    parameters = [p for group in groups for p in group["params"] if p.requires_grad]
    plain: Compute = lambda batch: module.computed(dict(batch))  # noqa: E731
    return GraphedSteps(plain, without_a_look, parameters, recorder or CudaRecorder(module.device))


def _reason_against(module: TrainingModule, *, needs_gpu: bool) -> str:
    """Why the steps of ``module`` are not recorded; empty: they are."""
    trainer = module.trainer
    if needs_gpu and module.device.type != "cuda":
        return f"it is for GPUs, and this run is on {module.device.type}"
    if not isinstance(trainer.strategy, SingleDeviceStrategy):
        return "it is for one device"
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        return f"trainer.precision={trainer.precision} scales its loss on the host"
    if module.mixed is not None:
        return "the tasks have different objectives, whose rows are told apart on the host"
    if module.trunk is not None:
        return "backbone.cache_frozen=true gives each batch the states of its texts, which no graph has"
    if module.backbone.recomputes:
        return "backbone.gradient_checkpointing=true asks for the random state inside a step"
    if module.adapter.strategy.acts_between_steps():
        return f"peft={module.adapter.strategy.name} has a schedule of its own"
    return ""
