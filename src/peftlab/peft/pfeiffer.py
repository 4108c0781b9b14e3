"""Pfeiffer adapters: MAD-X: An Adapter-Based Framework for Multi-Task Cross-Lingual Transfer (Pfeiffer et al.
2020, arXiv:2005.00052); AdapterFusion: Non-Destructive Task Composition (Pfeiffer et al. 2020, arXiv:2005.00247).

    h ← h + W_up f(W_down h + b_down) + b_up

One adapter a layer, behind the feed-forward: half of Houlsby's. W_up starts from zero, so the model starts as
the backbone. With ``layer_norm`` it is Adapter-L (Lin, Madotto & Fung 2020, arXiv:2004.03829), as the LoRA
paper counts it for GPT-2.

By default the adapter stands directly behind the feed-forward's output projection, before dropout, residual and
normalisation: a place that every architecture has, and not MAD-X's. ``placement: mad_x`` is MAD-X's: with r the
residual, the adapter reads what the sub-layer returns, is added before the residual, and is normalised once more,

    LN(h + r) ← LN(h + r + a(LN(h + r)))        a(x) = W_up f(W_down x + b_down) + b_up

which only models have that normalise behind the residual (BERT, RoBERTa, DistilBERT, DeBERTa, ELECTRA, ALBERT, BigBird,
XLNet). Both are compared with values of the library ``adapters`` (tests/peft/adapters_library).

Departures: the default place. W_up starts from zero, where the paper's starts near it. f is GELU unless ``activation:
relu`` is given, which the paper has: a narrow bottleneck of ReLUs may start with none of them active, and then never
trains.

Trainable: L · (2 · d · m + d + m) for L layers of width d and bottlenecks of m. RoBERTa-base, m = 16: 304,320.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor, nn

from peftlab.backbones.base import Target
from peftlab.errors import PeftlabError, listed
from peftlab.fields import added
from peftlab.peft.adapter import Adapter
from peftlab.peft.base import Selection, Supports, Usual
from peftlab.peft.bottleneck import Bottleneck, SeriesAdapters

if TYPE_CHECKING:
    from peftlab.backbones.base import Backbone

_BERT_NORM = r"layer\.\d+\.output\.LayerNorm"
_NORMS: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(("bert", "big_bird", "deberta", "deberta-v2", "electra", "roberta", "xlm-roberta"), _BERT_NORM)
    | {"albert": r"full_layer_layer_norm", "distilbert": r"output_layer_norm", "xlnet": r"ff\.layer_norm"}
)
"""Architecture → the end of the names of the normalisation behind the feed-forward's residual."""

_FEED_FORWARD = ("ffn_down",)


@dataclass(kw_only=True)
class Pfeiffer(SeriesAdapters, name="pfeiffer"):
    """One bottleneck adapter a layer, behind the feed-forward:  h + W_up f(W_down h)."""

    supports = Supports()
    count = "2 · bottleneck · width + biases a target; one target a layer"

    usual: ClassVar[Usual] = {"": {"targets": _FEED_FORWARD}, "text_classifier": {"targets": ("hidden",)}}

    targets: list[str] | None = None
    """Roles, or regexes on module names, whose output is adapted; each must match something. null: what is usual for
    the backbone, ffn_down of a transformer, the hidden layer of the text classifier."""
    placement: Literal["projection", "mad_x"] = added("projection")
    """Where adapters stand: ``projection``, directly behind the targets; ``mad_x``, behind the residual and
    normalisation that follow ``ffn_down``, as MAD-X has it."""

    def __post_init__(self) -> None:
        """Raise ValueError, beyond what is always refused, for targets that MAD-X does not have."""
        super().__post_init__()
        if self.placement == "mad_x" and self.targets not in (None, [*_FEED_FORWARD]):
            raise ValueError(
                f"peft.targets={self.targets} does not go with peft.placement=mad_x, which stands behind the "
                "normalisation of each feed-forward. Leave peft.targets at [ffn_down], or peft.placement at projection."
            )

    def select(self, backbone: Backbone) -> Selection:
        """The targets, or the normalisations behind the feed-forwards.

        Raises:
            PeftlabError: for a model that does not normalise behind the residual, or a bottleneck that is too wide.
        """
        if self.placement == "projection":
            return super().select(backbone)
        if backbone.architecture not in _NORMS:
            raise PeftlabError(
                f"peft.placement=mad_x needs a model that normalises behind the residual of its feed-forward, and "
                f"{backbone.architecture} is not known for it. Known are: {listed(_NORMS)}. Leave peft.placement at "
                "projection."
            )
        pattern = re.compile(rf"(?:.*\.)?{_NORMS[backbone.architecture]}")
        norms = [(name, module) for name, module in backbone.model.named_modules() if pattern.fullmatch(name)]
        for name, module in norms:
            self.require_width(_features(module), _features(module), name)
        return Selection(backbone, targets=[Target(name, module, role=None) for name, module in norms])

    def build(self, selection: Selection, *, seed: int, batches: Any = None) -> Adapter:
        """Put an adapter behind every target, or around every normalisation."""
        if self.placement == "projection":
            return super().build(selection, seed=seed, batches=batches)
        adapter = Adapter(self, selection.backbone)
        for target in selection.targets:
            features = _features(target.module)
            delta = MadXDelta(features, features, self.width(features, features), **self.options(seed, target.name))
            adapter.put(target, delta)
        return adapter

    def closed_form(self, backbone: Backbone) -> int:
        """The size of an adapter for each target."""
        if self.placement == "projection":
            return super().closed_form(backbone)
        widths = [_features(target.module) for target in self.select(backbone).targets]
        return sum(self.size(features, features) for features in widths)


def _features(norm: nn.Module) -> int:
    """Width of what a normalisation reads and returns."""
    weight = norm.weight
    assert isinstance(weight, Tensor)
    return len(weight)


class MadXDelta(Bottleneck):
    """LN(y) ← LN(y + a(LN(y))), where y is the sum of a sub-layer and its residual."""

    def forward(self, x: Tensor, out: Tensor, base: nn.Module) -> Tensor:
        """The normalisation ``base`` of ``x`` (…, width) and what the adapter makes of ``out``, its normalisation."""
        again: Tensor = base(x + self.adapted(out).to(x.dtype))
        return again
