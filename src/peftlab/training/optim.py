"""Optimizers and learning-rate schedules, chosen by ``conf/optim`` and ``conf/schedule``; building imports torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peftlab.fields import PositiveFloat, PositiveInt, Probability, added
from peftlab.training.config import Factor, OptimizerConfig, ScheduleConfig, Share

if TYPE_CHECKING:
    from torch.optim import Optimizer


@dataclass(kw_only=True)
class AdamW(OptimizerConfig):
    """AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101). Biases and norms are not decayed."""

    beta1: Probability = 0.9
    """How much of the gradients' mean each step keeps."""
    beta2: Probability = 0.999
    """How much of the mean of the gradients' squares each step keeps."""
    eps: PositiveFloat = 1e-8
    """Added to the root of the mean of the gradients' squares, so that nothing is divided by zero."""
    fused: bool = added(False)
    """One kernel for all tensors, on a GPU: less time a step, and other last bits."""

    def build(self, groups: list[dict[str, Any]]) -> Optimizer:
        """The optimizer over ``groups``."""
        import torch

        return torch.optim.AdamW(
            decay_matrices_only(groups, self.weight_decay),
            lr=self.lr,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            fused=self.fused or None,
        )


@dataclass(kw_only=True)
class SGD(OptimizerConfig):
    """Stochastic gradient descent, with momentum if asked for."""

    momentum: Probability = 0.0
    """How much of the last update each step keeps."""
    nesterov: bool = False
    """Nesterov's momentum."""

    def __post_init__(self) -> None:
        """Raise ValueError for Nesterov's rule without momentum."""
        if self.nesterov and not self.momentum:
            raise ValueError("optim.nesterov=true needs optim.momentum > 0.")

    def build(self, groups: list[dict[str, Any]]) -> Optimizer:
        """The optimizer over ``groups``."""
        import torch

        return torch.optim.SGD(
            decay_matrices_only(groups, self.weight_decay),
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
        )


def decay_matrices_only(groups: list[dict[str, Any]], weight_decay: float) -> list[dict[str, Any]]:
    """Split each group so that tensors of fewer than two dimensions (biases, norms) are not decayed."""
    split: list[dict[str, Any]] = []
    for group in groups:
        rest = {name: value for name, value in group.items() if name != "params"}
        matrices = [p for p in group["params"] if p.ndim >= 2]
        vectors = [p for p in group["params"] if p.ndim < 2]
        split += [{**rest, "params": matrices, "weight_decay": weight_decay}] if matrices else []
        split += [{**rest, "params": vectors, "weight_decay": 0.0}] if vectors else []
    return split


@dataclass(kw_only=True)
class Constant(ScheduleConfig):
    """The peak rate throughout."""

    def decay(self, progress: float, epoch: int) -> float:
        """Always 1."""
        return 1.0


@dataclass(kw_only=True)
class Linear(ScheduleConfig):
    """From the peak linearly to ``final_factor`` of it."""

    final_factor: Share = 0.0
    """Factor on the peak rate at the last step."""

    def decay(self, progress: float, epoch: int) -> float:
        """1 at the start, ``final_factor`` at the end."""
        return 1.0 + (self.final_factor - 1.0) * progress


@dataclass(kw_only=True)
class Cosine(ScheduleConfig):
    """From the peak along half a cosine to ``final_factor`` of it (arXiv:1608.03983, eq. 5, one period)."""

    final_factor: Share = 0.0
    """Factor on the peak rate at the last step."""

    def decay(self, progress: float, epoch: int) -> float:
        """1 at the start, ``final_factor`` at the end."""
        return self.final_factor + (1.0 - self.final_factor) * 0.5 * (1.0 + math.cos(math.pi * progress))


@dataclass(kw_only=True)
class Step(ScheduleConfig):
    """Times ``gamma`` every ``every_epochs`` epochs."""

    gamma: Factor = 0.1
    """What the learning rate is multiplied by after every ``every_epochs``."""
    every_epochs: PositiveInt = 1
    """Epochs between two multiplications of the learning rate by ``gamma``."""

    def decay(self, progress: float, epoch: int) -> float:
        """``gamma`` to the number of whole periods."""
        return self.gamma ** (epoch // self.every_epochs)
