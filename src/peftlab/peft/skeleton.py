"""A model of shapes alone, on which a method that decides its own places is tried before the real one is changed."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from peftlab.backbones.base import Backbone


def skeleton(backbone: Backbone) -> Backbone:
    """A copy of ``backbone`` on device ``meta``: all modules, no values; quantised weights as float ones."""
    memo: dict[int, Any] = {id(backbone.tokenizer): backbone.tokenizer}
    for parameter in backbone.parameters():
        memo[id(parameter)] = nn.Parameter(_shape_only(parameter), requires_grad=False)
    for buffer in backbone.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(backbone, memo)


def _shape_only(parameter: nn.Parameter) -> Tensor:
    state = getattr(parameter, "quant_state", None)
    dtype = parameter.dtype if parameter.is_floating_point() else torch.float32
    return torch.empty(parameter.shape if state is None else state.shape, dtype=dtype, device="meta")
