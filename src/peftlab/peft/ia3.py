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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from peftlab.backbones.roles import find_targets
from peftlab.errors import PeftlabError
from peftlab.peft.adapter import Adapter
from peftlab.peft.base import PEFTStrategy, Selection, Supports, Usual
from peftlab.peft.delta import Delta
from peftlab.peft.surgery import require_linear, target_features

if TYPE_CHECKING:
    from peftlab.backbones.base import Backbone, Target


@dataclass(kw_only=True)
class IA3(PEFTStrategy, name="ia3"):
    """Learned scales on keys, values and feed-forward activations:  l_k ⊙ K, l_v ⊙ V, l_ff ⊙ γ(W x)."""

    supports = Supports(mergeable=True, hf_peft="IA3")
    count = "outputs of each target + inputs of each feed-forward target"

    usual: ClassVar[Usual] = {
        "": {"targets": ("key", "value"), "feedforward_targets": ("ffn_down",)},
        "text_classifier": {"targets": ("hidden",), "feedforward_targets": ()},
    }

    targets: list[str] | None = None
    """Roles, or regexes on module names, whose output is scaled; each must match something. null: what is usual for the
    backbone, key and value of a transformer, the hidden layer of the text classifier."""
    feedforward_targets: list[str] | None = None
    """Roles, or regexes on module names, whose input is scaled; each must match something. null: what is usual for the
    backbone, ffn_down of a transformer, nothing of the text classifier."""

    def __post_init__(self) -> None:
        """Raise ValueError if nothing would be scaled."""
        if self.targets == [] and self.feedforward_targets == []:
            raise ValueError("peft.targets and peft.feedforward_targets are both empty: name something to scale.")

    def select(self, backbone: Backbone) -> IA3Selection:
        """The layers whose inputs are scaled, and those whose outputs are."""
        where, inputs = (self.places(name, backbone.architecture) for name in ("targets", "feedforward_targets"))
        scaled = find_targets(backbone, where) if where else []
        fed = find_targets(backbone, inputs) if inputs else []
        for target in fed:
            if target.output_slice is not None:
                raise PeftlabError(
                    f"peft.feedforward_targets: '{target.role}' is a part of '{target.name}', whose input all parts "
                    "share, so it cannot be scaled for one of them. Name the module, or choose ffn_down."
                )
        require_linear(scaled)
        require_linear(fed, "peft.feedforward_targets")
        return IA3Selection(backbone, targets=[*fed, *scaled], scaled=scaled, fed=fed)

    def build(self, selection: Selection, *, seed: int, batches: Any = None) -> Adapter:
        """Put scales of one on every target; ``seed`` decides nothing."""
        assert isinstance(selection, IA3Selection)
        adapter = Adapter(self, selection.backbone)
        for target in selection.fed:
            adapter.put(target, InputScale(target_features(target)[0]), key="input")
        for target in selection.scaled:
            adapter.put(target, OutputScale(target_features(target)[1]))
        return adapter

    def closed_form(self, backbone: Backbone) -> int:
        """Outputs of the targets and inputs of the feed-forward targets."""
        selection = self.select(backbone)
        return sum(target_features(t)[1] for t in selection.scaled) + sum(target_features(t)[0] for t in selection.fed)


@dataclass(frozen=True)
class IA3Selection(Selection):
    """Which of the targets are scaled where."""

    scaled: Sequence[Target] = ()
    """Their outputs."""
    fed: Sequence[Target] = ()
    """Their inputs."""


class Scale(Delta):
    """A vector of factors that starts from one."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(features, dtype=torch.float32))

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"features={len(self.scale)}, rows={self.rows}"


class OutputScale(Scale):
    """h = l ⊙ (W x + b), for all outputs of a layer or a slice of them."""

    def forward(self, x: Tensor, out: Tensor, base: nn.Module) -> Tensor:
        """``out`` (…, out), scaled."""
        return (out * self.scale).to(out.dtype)

    def folded(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Rows of W, and b, scaled."""
        return weight * self.scale.unsqueeze(1), None if bias is None else bias * self.scale


class InputScale(Scale):
    """h = W (l ⊙ x) + b."""

    def before(self, x: Tensor) -> Tensor:
        """``x`` (…, in), scaled."""
        return (x * self.scale).to(x.dtype)

    def folded(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Columns of W, scaled."""
        return weight * self.scale, bias
