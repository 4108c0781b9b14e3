"""A frozen layer with something put around it: what scaling methods, VeRA and bottleneck adapters share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from peftlab.errors import PeftlabError
from peftlab.peft.surgery import is_conv1d, linear_features, replace_module, require_float, slice_length

if TYPE_CHECKING:
    from peftlab.backbones.base import Backbone, Target


class WrappedLayer(nn.Module):
    """A frozen linear layer; subclasses change what goes in or comes out."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    @property
    def weight(self) -> Tensor:
        """The frozen weight: some models look at its dtype."""
        weight = self.base.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias."""
        bias = getattr(self.base, "bias", None)
        assert bias is None or isinstance(bias, Tensor)
        return bias


class MergeableLayer(WrappedLayer):
    """A wrapped layer whose change can be folded into the weight."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        self.merged = False

    def fold(self, *, undo: bool) -> None:
        """Change the base's weight by the update, or back; called only when that is due."""
        raise NotImplementedError


def part_name(target: Target) -> str:
    """Key of ``target`` among the parts of its layer: the role of a slice, ``all`` for the whole output."""
    return target.role if target.output_slice is not None and target.role else "all"


def target_features(target: Target, key: str = "peft.targets") -> tuple[int, int]:
    """(in, out) features of a target that must be a linear layer; of a slice, out is the slice's.

    Raises:
        PeftlabError: naming the config ``key``, if it is an embedding.
    """
    if isinstance(target.module, nn.Embedding):
        raise PeftlabError(
            f"{key}: '{target.name}' is an embedding, and this method needs linear layers. Take it out of {key} "
            "(peft=lora adapts embeddings)."
        )
    in_features, out_features = linear_features(target.module)
    return in_features, slice_length(target, out_features)


def wrap(backbone: Backbone, target: Target, wrapper: type[WrappedLayer]) -> WrappedLayer:
    """The ``wrapper`` at ``target``, put there at the first of its slices."""
    module = backbone.model.get_submodule(target.name)
    if not isinstance(module, wrapper):
        module = wrapper(module)
        replace_module(backbone.model, target.name, module)
    return module


def add_to_rows(out: Tensor, delta: Tensor, rows: slice | None) -> Tensor:
    """``out`` (…, out) plus ``delta`` (…, rows) in the type of ``out``."""
    if rows is None:
        return out + delta.to(out.dtype)
    out = out.clone()  # the base's output must not change under autograd's feet
    out[..., rows] += delta.to(out.dtype)
    return out


def weight_as_out_in(base: nn.Module) -> Tensor:
    """The float weight of a linear layer as a view (out, in), also of GPT-2's Conv1D."""
    weight = base.weight
    assert isinstance(weight, Tensor)
    return weight.T if is_conv1d(base) else weight


def merge_all(backbone: Backbone, wrapper: type[MergeableLayer], *, undo: bool) -> None:
    """Fold every ``wrapper`` of ``backbone`` into its weight, or undo that; nothing where it is done already.

    Raises:
        PeftlabError: if a weight is stored in 4 or 8 bits; then nothing is changed.
    """
    layers = {name: m for name, m in backbone.model.named_modules() if isinstance(m, wrapper)}
    for name, layer in layers.items():
        require_float(name, layer.base)
    for layer in layers.values():
        if layer.merged == undo:
            with torch.no_grad():
                layer.fold(undo=undo)
            layer.merged = not undo
