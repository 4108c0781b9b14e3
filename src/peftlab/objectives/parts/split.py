"""An objective's figures over a split, correct across processes and batches of unequal size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from peftlab.objectives.base import Objective


class SplitMetrics(nn.Module):
    """The loss, and what the objective's figures follow from."""

    def __init__(self, objective: Objective, names: Sequence[str]) -> None:
        super().__init__()
        self.objective = objective
        self.loss = WeightedMean()
        self.states = nn.ModuleDict(objective.states(names))

    def update(self, outputs: Tensor, labels: Tensor, loss: Tensor, weight: int | None = None) -> None:
        """Add a batch: ``outputs`` (B, C), ``labels`` (B,), ``loss`` the batch's mean, over ``weight`` or its rows."""
        self.loss.update(loss, len(labels) if weight is None else weight)
        self.objective.update(self.states, outputs, labels)

    def compute(self) -> dict[str, Any]:
        """The values over everything seen in all processes, as plain numbers; then start anew."""
        computed = {name: state.compute() for name, state in self.states.items()}  # type: ignore[operator]
        values = {"loss": float(self.loss.compute()), **self.objective.compute(computed)}
        self.loss.reset()
        for state in self.states.values():
            state.reset()  # type: ignore[operator]
        return values


class WeightedMean(Metric):
    """Mean over rows; what is no number makes it none. (MeanMetric drops such values, or else the weights.)"""

    full_state_update = False
    total: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("weight", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, value: Tensor, weight: float) -> None:
        """Add values of any shape, each of which stands for ``weight`` rows."""
        self.total += (value.to(self.total.dtype) * weight).sum()
        self.weight += weight * value.numel()

    def compute(self) -> Tensor:
        """The mean, a scalar; NaN of nothing."""
        return self.total / self.weight


class ConfusionMatrix(Metric):
    """Rows counted by true and predicted class, without a look at the device's numbers (torchmetrics' waits)."""

    full_state_update = False
    confmat: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.add_state("confmat", torch.zeros(classes, classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, labels: Tensor) -> None:
        """Add rows: ``predicted`` and ``labels`` (B,) int64, both among the classes."""
        classes = torch.arange(len(self.confmat), device=labels.device)
        with torch.autocast(labels.device.type, enabled=False):  # float32 holds counts of a batch exactly
            true = (labels[:, None] == classes).float()
            self.confmat += (true.T @ (predicted[:, None] == classes).float()).long()

    def compute(self) -> Tensor:
        """(C, C) int64: rows of each true class (first) that were taken for each (second)."""
        return self.confmat


class Sums(Metric):
    """Running sums in float64 (float32 where a device has no more)."""

    full_state_update = False
    sums: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(width, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, values: Tensor) -> None:
        """Add ``values`` (width,)."""
        self.sums += values.detach().to(self.sums.dtype)

    def compute(self) -> Tensor:
        """The sums, (width,)."""
        return self.sums


FIRST_ROWS = 4096


def grown(held: Sequence[Tensor], more: Tensor) -> Tensor:
    """The rows held so far and ``more``, at the beginning of one block of memory, which doubles when it is full.

    A block of its own for each batch would lie among the large ones that a forward pass frees: cut in two by it, they
    are too small for the next batch, and where freed memory is kept (:mod:`peftlab.allocator`) a process grows by a
    layer's activations with every batch.

    Args:
        held: what this function returned before, alone, or nothing.
        more: (B, …), copied.
    """
    block = held[0] if held else None
    before = 0 if block is None else len(block)
    shape = (before + len(more), *more.shape[1:])
    if block is None or block.untyped_storage().nbytes() < math.prod(shape) * more.element_size():
        block = more.new_empty(max(FIRST_ROWS, 2 * shape[0]), *shape[1:])
        if before:
            block[:before] = held[0]
    rows = block.as_strided(shape, more.new_empty(0, *shape[1:]).stride(), 0)
    rows[before:] = more
    return rows


class Collected(Metric):
    """Rows of numbers, kept as they are, of all processes: for figures that no running sum gives exactly."""

    full_state_update = False
    rows: list[Tensor]

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.add_state("rows", [], dist_reduce_fx="cat")

    def update(self, *columns: Tensor) -> None:
        """Add rows: ``width`` columns of (B,), kept as float32, which predictions and labels are."""
        self.rows = [grown(self.rows, torch.stack([column.detach().float() for column in columns], dim=1))]

    def _sync_dist(self, *how: Any, **more: Any) -> None:
        """A process without rows takes part with none: gathering wants a tensor of each."""
        if not self.rows:
            self.rows.append(torch.zeros(0, self.width, device=self.device))
        super()._sync_dist(*how, **more)

    def compute(self) -> Tensor:
        """(N, width) float64 on the CPU, sorted: whatever order the rows came in, sums over them are the same."""
        given: Any = self.rows
        parts = [given] if isinstance(given, Tensor) else list(given)
        found = torch.cat(parts).cpu().double() if parts else torch.zeros(0, self.width, dtype=torch.float64)
        return torch.tensor(sorted(found.tolist()), dtype=torch.float64).reshape(-1, self.width)


class KeptOutputs(Metric):
    """The head's outputs of numbered rows, of all processes."""

    full_state_update = False
    rows: list[Tensor]
    outputs: list[Tensor]

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.add_state("rows", [], dist_reduce_fx="cat")
        self.add_state("outputs", [], dist_reduce_fx="cat")

    def update(self, rows: Sequence[int], outputs: Tensor) -> None:
        """Add the ``outputs`` (B, C) of ``rows``, B numbers."""
        self.rows = [grown(self.rows, torch.tensor(list(rows), dtype=torch.int64, device=outputs.device))]
        self.outputs = [grown(self.outputs, outputs.detach().float())]

    def _sync_dist(self, *how: Any, **more: Any) -> None:
        """A process without rows takes part with none: gathering wants a tensor of each."""
        if not self.rows:
            self.rows.append(torch.zeros(0, dtype=torch.int64, device=self.device))
            self.outputs.append(torch.zeros(0, self.width, device=self.device))
        super()._sync_dist(*how, **more)

    def compute(self) -> Tensor:
        """(N, C) float32 on the CPU, by the rows' numbers; where a row came in parts, their sums."""
        rows, outputs = (
            (torch.cat(given) if isinstance(given, list) else given).cpu() for given in (self.rows, self.outputs)
        )
        order = rows.argsort(stable=True)
        numbers, row_of = torch.unique(rows[order], return_inverse=True)
        if len(numbers) == len(rows):
            return outputs[order]
        sums = torch.zeros(len(numbers), self.width, dtype=torch.float64)
        return sums.index_add_(0, row_of, outputs[order].double()).float()
