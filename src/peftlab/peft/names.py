"""Names of tensors as the clean model has them, whatever stands around its layers, and the tensors that they mean.

A bias that trains is ``….query.bias`` also where an adapted layer stands around ``query``, or a float32 copy of the
bias trains in its stead.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from peftlab.backbones.soft_prompt import PromptedEmbedding
from peftlab.peft.delta import AdaptedLayer
from peftlab.peft.surgery import is_quantized


def inside(module: nn.Module) -> nn.Module:
    """The backbone's own layer in ``module``, whatever stands around it."""
    while (child := _around(module)) is not None:
        module = getattr(module, child)
    return module


def _around(module: nn.Module | None) -> str | None:
    """The child in which ``module`` keeps the layer that it stands around; None if it is no wrapper."""
    if isinstance(module, AdaptedLayer | PromptedEmbedding):
        return "base"
    if type(module).__module__.startswith("peft."):  # trained tokens stand in a wrapper of their own
        assert module is not None
        return next(
            (child for child in ("token_adapter", "base_layer") if child in dict(module.named_children())), None
        )
    return None


def adapted_by(model: nn.Module) -> tuple[str, str] | None:
    """Name of the first layer in ``model`` that something stands around, and whose that is; None: it is clean."""
    for name, module in model.named_modules():
        if isinstance(module, AdaptedLayer | PromptedEmbedding):
            return name, "peftlab"
        if type(module).__module__.startswith("peft."):
            return name or type(module).__name__, "HF peft"
    return None


def located(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that owns the tensor with the clean ``name``, and the tensor's name in it."""
    *path, leaf = name.split(".")
    module = inside(model)
    for child in path:
        module = inside(module.get_submodule(child))
    return module, leaf


def live_parameter(model: nn.Module, name: str) -> nn.Parameter:
    """The parameter with the clean ``name``: where a float32 copy of it trains, that copy."""
    module, leaf = located(model, name)
    copies: Any = getattr(module, "parametrizations", {})
    parameter = copies[leaf].original if leaf in copies else getattr(module, leaf)
    assert isinstance(parameter, nn.Parameter), name
    return parameter


def clean_name(model: nn.Module, live: str) -> str:
    """The name in the clean model of what ``model`` has as ``live``."""
    kept: list[str] = []
    module: Any = model
    for part in live.split("."):
        if part != _around(module):
            kept.append(part)
        module = getattr(module, part, None)
    return re.sub(r"\.parametrizations\.(\w+)\.original$", r".\1", ".".join(kept))


def let_train(model: nn.Module, name: str) -> None:
    """Let the tensor with the clean ``name`` train, as a float32 copy of itself if it is stored in another type.

    The layer sees the copy in the stored type. Without it a LayerNorm weight of 1 in bfloat16 would never move: its
    neighbours are 2⁻⁷ away, and a step of an optimizer is a tenth of that.
    """
    owner, leaf = located(model, name)
    parameter = owner.get_parameter(leaf)
    # bitsandbytes casts the bias of its layers in place to the type of the activations, and would so
    # change a trained tensor under the optimizer.
    if parameter.dtype == torch.float32 and not is_quantized(owner):
        parameter.requires_grad_(True)
        return
    copy = nn.Parameter(parameter.detach().to(torch.float32, copy=True))
    for module in list(model.modules()):  # tied weights have several owners
        for leaf in [leaf for leaf, p in module.named_parameters(recurse=False) if p is parameter]:
            parametrize.register_parametrization(module, leaf, InType(parameter.dtype), unsafe=True)
            stored = module.get_submodule(f"parametrizations.{leaf}")
            stored.original = copy


def into_type(model: nn.Module, dtype: torch.dtype) -> None:
    """Give all floats of ``model`` this type, also those that train in another than they show, in place."""
    model.to(dtype)
    for module in model.modules():
        if isinstance(module, InType):
            module.dtype = dtype


class InType(nn.Module):
    """A float32 tensor as the layer that owns it wants to see it."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, tensor: Tensor) -> Tensor:
        """The tensor in the layer's type, always as a tensor of its own."""
        return tensor.view_as(tensor) if tensor.dtype == self.dtype else tensor.to(self.dtype)
