"""What the methods share that train some of the backbone's own tensors (BitFit, LN-tuning, LoRA's biases, ...).

A tensor stored in 16 bits, or beside a weight in 4 or 8 bits, is trained as a float32 copy of itself, and the
layer sees it in the stored type. Without that a LayerNorm weight of 1 in bfloat16 would never move: its
neighbours are 2⁻⁷ away, and a step of an optimizer is a tenth of that.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from peftlab.errors import PeftlabError, listed, nearest
from peftlab.peft.base import PEFTStrategy
from peftlab.peft.surgery import is_quantized

if TYPE_CHECKING:
    from peftlab.backbones.base import Backbone


@dataclass(kw_only=True)
class SelectiveTuning(PEFTStrategy):
    """Trains tensors that the backbone has, and adds none; a method says which."""

    @abstractmethod
    def select(self, backbone: Backbone) -> list[str]:
        """Names, inside ``backbone.model``, of the parameters that train; never empty.

        Raises:
            PeftlabError: if there is nothing to train, listing what there is.
        """

    def inject(self, backbone: Backbone, *, seed: int) -> None:
        """Let the selected tensors train."""
        names = self.select(backbone)
        for name in names:
            if not backbone.model.get_parameter(name).is_floating_point():
                raise PeftlabError(
                    f"peft={self.name}: '{name}' is stored in {backbone.provenance.get('quantize')}, which cannot be "
                    "trained; biases and normalisation layers stay in float. Select those only, or set "
                    "backbone.quantize=null."
                )
        for name in names:
            let_train(backbone.model, name)

    def closed_form(self, backbone: Backbone) -> int:
        """Elements of the selected tensors."""
        own = own_parameters(backbone)
        return sum(own[name].numel() for name in self.select(backbone))

    def adapter_tensors(self, module: nn.Module) -> dict[str, Tensor]:
        """What trains, under the backbone's own names also where a float32 copy stands in."""
        return {stored_name(name): tensor for name, tensor in super().adapter_tensors(module).items()}


def own_parameters(backbone: Backbone) -> dict[str, nn.Parameter]:
    """The backbone's parameters outside the head, without those that no method trains."""
    left_out = {*backbone.always_frozen(), *(name for name, _ in backbone.head_parameters())}
    return {name: p for name, p in backbone.model.named_parameters() if name not in left_out}


def matching(key: str, entry: str, names: Iterable[str], kind: str) -> list[str]:
    """The ``names`` that ``entry`` means: the name itself, its end from a dot on, or a regex for all of it.

    Raises:
        PeftlabError: naming the config ``key`` and what ``kind`` of thing there is, if none matches.
    """
    names = list(names)
    try:
        pattern = re.compile(entry)
    except re.error as error:
        raise PeftlabError(f"{key}: '{entry}' is not a regular expression: {error}.") from error
    found = [name for name in names if name.endswith(f".{entry}") or name == entry or pattern.fullmatch(name)]
    if not found:
        short = compressed(names)
        endings = {ending for name in names for ending in (name, name.rpartition(".")[2])}
        raise PeftlabError(
            f"{key}: '{entry}' matches none of the {kind} outside the head.{nearest(entry, endings)} "
            f"There are (any layer number is *): {listed(short)}."
        )
    return found


def compressed(names: Iterable[str]) -> list[str]:
    """Each name once with ``*`` for layer numbers: ``encoder.layer.*.output.dense.bias``."""
    return sorted({re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name) for name in names})


def is_norm(module: nn.Module) -> bool:
    """Whether ``module`` normalises: LayerNorm, or one of the many RMSNorm classes of transformers."""
    return type(module).__name__.endswith("Norm")


def stored_name(name: str) -> str:
    """The backbone's name of a tensor that trains as a float32 copy of itself; other names as they are."""
    return re.sub(r"\.parametrizations\.(\w+)\.original$", r".\1", name)


def let_train(model: nn.Module, name: str) -> None:
    """Let the tensor ``name`` of ``model`` train, as a float32 copy of itself if it is stored in another type."""
    parameter = model.get_parameter(name)
    owner = model.get_submodule(name.rpartition(".")[0])
    # bitsandbytes casts the bias of its layers in place to the type of the activations, and would so
    # change a trained tensor under the optimizer.
    if parameter.dtype == torch.float32 and not is_quantized(owner):
        parameter.requires_grad_(True)
        return
    copy = nn.Parameter(parameter.detach().to(torch.float32, copy=True))
    for module in list(model.modules()):  # tied weights have several owners
        for leaf in [leaf for leaf, p in module.named_parameters(recurse=False) if p is parameter]:
            parametrize.register_parametrization(module, leaf, _InType(parameter.dtype), unsafe=True)
            stored = module.get_submodule(f"parametrizations.{leaf}")
            stored.original = copy


class _InType(nn.Module):
    """A float32 tensor as the layer that owns it wants to see it."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, tensor: Tensor) -> Tensor:
        """The tensor in the layer's type, always as a tensor of its own."""
        return tensor.view_as(tensor) if tensor.dtype == self.dtype else tensor.to(self.dtype)
