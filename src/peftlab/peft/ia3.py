"""(IA)³: Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning
(Liu et al. 2022, arXiv:2205.05638).

    softmax(Q (l_k ⊙ K)ᵀ / √d_k) (l_v ⊙ V)          attention               (section 3.3)
    (l_ff ⊙ γ(W_1 x)) W_2                            feed-forward

l_k and l_v scale what the key and value projections return; l_ff scales the activations between the two
layers of the feed-forward, that is the input of ``ffn_down``. All start from one: the model starts as the
backbone. The projections' biases are scaled with their outputs. Departure: none; targets beyond the paper's
can be named.

Trainable: the outputs of each target, the inputs of each feed-forward target. T0-11B (T5 XXL): 1,081,344.
A role that is a slice of a fused projection is scaled on its own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from peftlab.backbones.role_table import output_features
from peftlab.backbones.roles import find_targets
from peftlab.errors import PeftlabError
from peftlab.interop.hf_format import MODEL, HFAdapter, HFFolder, module_names, plain_float
from peftlab.peft.base import PEFTStrategy, Supports
from peftlab.peft.surgery import is_conv1d, weight_matrix
from peftlab.peft.weight_update import WeightUpdate
from peftlab.peft.wrapping import MergeableLayer, merge_all, part_name, target_features, weight_as_out_in, wrap

if TYPE_CHECKING:
    from peftlab.backbones.base import Backbone, Target


@dataclass(kw_only=True)
class IA3(PEFTStrategy, name="ia3"):
    """Learned scales on keys, values and feed-forward activations:  l_k ⊙ K, l_v ⊙ V, l_ff ⊙ γ(W x)."""

    supports = Supports(mergeable=True, hf_peft="IA3")
    count = "outputs of each target + inputs of each feed-forward target"

    targets: list[str] = field(default_factory=lambda: ["key", "value"])
    """Roles, or regexes on module names, whose output is scaled. Each entry must match something."""
    feedforward_targets: list[str] = field(default_factory=lambda: ["ffn_down"])
    """Roles, or regexes on module names, whose input is scaled. Each entry must match something."""

    def __post_init__(self) -> None:
        """Raise ValueError if nothing would be scaled."""
        if not self.targets and not self.feedforward_targets:
            raise ValueError("peft.targets and peft.feedforward_targets are both empty: name something to scale.")

    def inject(self, backbone: Backbone, *, seed: int) -> None:
        """Put scales of one around every target; ``seed`` decides nothing."""
        scaled, fed = self._places(backbone)
        for target in scaled:
            _, out_features = target_features(target)
            layer = _layer(backbone, target)
            layer.output_scales[part_name(target)] = nn.Parameter(_ones(out_features, layer))
            layer.rows[part_name(target)] = target.output_slice or slice(None)
        for target in fed:
            in_features, _ = target_features(target, "peft.feedforward_targets")
            layer = _layer(backbone, target)
            layer.input_scale = nn.Parameter(_ones(in_features, layer))

    def closed_form(self, backbone: Backbone) -> int:
        """Outputs of the targets and inputs of the feed-forward targets."""
        scaled, fed = self._places(backbone)
        return sum(target_features(t)[1] for t in scaled) + sum(target_features(t)[0] for t in fed)

    def _places(self, backbone: Backbone) -> tuple[list[Target], list[Target]]:
        scaled = find_targets(backbone, self.targets) if self.targets else []
        fed = find_targets(backbone, self.feedforward_targets) if self.feedforward_targets else []
        for target in fed:
            if target.output_slice is not None:
                raise PeftlabError(
                    f"peft.feedforward_targets: '{target.role}' is a part of '{target.name}', whose input all parts "
                    "share, so it cannot be scaled for one of them. Name the module, or choose ffn_down."
                )
        return scaled, fed

    def merge(self, backbone: Backbone) -> None:
        """Scale rows and columns of the frozen weights, and the biases; the scales are then skipped."""
        merge_all(backbone, IA3Layer, undo=False)

    def unmerge(self, backbone: Backbone) -> None:
        """Divide by the scales again (within rounding).

        Raises:
            PeftlabError: if a scale is zero, so that the weight is lost.
        """
        for name, layer in backbone.model.named_modules():
            if isinstance(layer, IA3Layer) and layer.merged and any((p == 0).any() for p in layer.scales()):
                raise PeftlabError(
                    f"'{name}' was scaled by zero, which cannot be undone: the weights are lost. Build the backbone "
                    "again and load the adapter."
                )
        merge_all(backbone, IA3Layer, undo=True)

    def weight_updates(self, backbone: Backbone) -> list[WeightUpdate]:
        """(l · l_ffᵀ − 1) ⊙ W of every target: rows and columns of the weight, scaled."""
        return [
            WeightUpdate(name, weight, layer.scaled(weight) - weight)
            for name, layer in backbone.model.named_modules()
            if isinstance(layer, IA3Layer)
            for weight in [weight_matrix(layer.base).float()]
        ]

    def to_hf(self, backbone: Backbone) -> HFAdapter:
        """One vector a layer; outputs outside of the scaled slices are scaled by one."""
        tensors: dict[str, Tensor] = {}
        fed = []
        layers = {name: layer for name, layer in backbone.model.named_modules() if isinstance(layer, IA3Layer)}
        for name, layer in layers.items():
            if layer.input_scale is not None and layer.rows:
                raise PeftlabError(
                    f"this (IA)³ cannot be written in the format of HF peft: '{name}' has its inputs and its outputs "
                    "scaled, and a layer has one of the two there."
                )
            if layer.input_scale is not None:
                fed.append(name)
                scale = plain_float(layer.input_scale).unsqueeze(0)  # (1, in)
            else:
                scale = torch.ones(output_features(layer.base), 1)  # (out, 1)
                for part, rows in layer.rows.items():
                    scale[rows, 0] = plain_float(layer.output_scales[part])
            tensors[f"{MODEL}{name}.ia3_l"] = scale
        config = {
            "peft_type": "IA3",
            "target_modules": module_names(backbone, layers),
            "feedforward_modules": module_names(backbone, fed),
            "fan_in_fan_out": any(is_conv1d(layer.base) for layer in layers.values()),
        }
        return HFAdapter(config, tensors)

    @classmethod
    def from_hf(cls, folder: HFFolder) -> dict[str, Any] | None:
        """IA3: a column scales a layer's outputs, a row its inputs."""
        if folder.peft_type != "IA3":
            return None
        folder.understands("target_modules", "feedforward_modules", "exclude_modules", "fan_in_fan_out")
        folder.understands("init_ia3_weights")
        names = folder.modules_with("ia3_l")
        fed = {name for name in names if folder.tensors[f"{MODEL}{name}.ia3_l"].shape[0] == 1}
        return {
            "targets": [re.escape(name) for name in names if name not in fed],
            "feedforward_targets": [re.escape(name) for name in names if name in fed],
        }

    def load_hf(self, backbone: Backbone, folder: HFFolder) -> None:
        """The scales of every layer."""
        for name, layer in backbone.model.named_modules():
            if isinstance(layer, IA3Layer):
                folder.copy(f"{MODEL}{name}.ia3_l", layer.scales()[0], backbone)


def _layer(backbone: Backbone, target: Target) -> IA3Layer:
    layer = wrap(backbone, target, IA3Layer)
    assert isinstance(layer, IA3Layer)
    return layer


def _ones(features: int, layer: IA3Layer) -> Tensor:
    return torch.ones(features, dtype=torch.float32, device=layer.weight.device)


class IA3Layer(MergeableLayer):
    """A frozen layer, scales of its outputs (one vector, or one a slice) and of its inputs."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        self.output_scales = nn.ParameterDict()  # part -> (its rows,)
        self.rows: dict[str, slice] = {}
        self.register_parameter("input_scale", None)
        self.input_scale: nn.Parameter | None  # (in,)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        if self.merged:
            out: Tensor = self.base(x)
            return out
        if self.input_scale is not None:
            x = (x * self.input_scale).to(x.dtype)
        out = self.base(x)
        for part, rows in self.rows.items():
            scale = self.output_scales[part]
            if rows == slice(None):
                out = (out * scale).to(out.dtype)
            else:
                scaled = (out[..., rows] * scale).to(out.dtype)
                out = out.clone()  # the base's output must not change under autograd's feet
                out[..., rows] = scaled
        return out

    def scales(self) -> list[Tensor]:
        """All scale vectors."""
        return [*self.output_scales.values(), *([] if self.input_scale is None else [self.input_scale])]

    @torch.no_grad()
    def scaled(self, weight: Tensor) -> Tensor:
        """``weight`` (out, in) with its rows and columns scaled, as a matrix of its own."""
        weight = weight.clone() if self.input_scale is None else weight * self.input_scale
        for part, rows in self.rows.items():
            weight[rows] *= self.output_scales[part].unsqueeze(1)
        return weight

    def fold(self, *, undo: bool) -> None:
        """Multiply weight and bias by the scales, or divide."""
        weight = weight_as_out_in(self.base)  # (out, in)
        for part, rows in self.rows.items():
            factor = self.output_scales[part].reciprocal() if undo else self.output_scales[part]
            weight[rows] = (weight[rows] * factor.unsqueeze(1)).to(weight.dtype)
            if self.bias is not None:
                self.bias[rows] = (self.bias[rows] * factor).to(self.bias.dtype)
        if self.input_scale is not None:
            factor = self.input_scale.reciprocal() if undo else self.input_scale
            weight.copy_(weight * factor)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"outputs={list(self.rows)}, inputs={self.input_scale is not None}"
