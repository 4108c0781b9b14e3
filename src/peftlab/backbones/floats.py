"""Types of floats inside a model: single precision where less would lose too much, double where a run is in double."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def at_least_single(tensor: Tensor) -> Tensor:
    """``tensor`` in float32; in float64 where it is that already."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def cast_to_own_type(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """A forward pre-hook: floats enter ``module`` in the type of its own parameters, float32 if it has none."""
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    return tuple(x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)
