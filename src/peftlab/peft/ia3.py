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

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from peftlab.backbones.roles import find_targets
from peftlab.errors import PeftlabError
from peftlab.peft.base import PEFTStrategy, Supports
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
