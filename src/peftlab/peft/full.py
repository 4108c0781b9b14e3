"""Full fine-tuning: the baseline that PEFT methods are measured against.

Every parameter of the backbone trains, except those that the backbone keeps frozen by its own config
(``backbone.freeze`` of the text classifier). Trainable: all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from peftlab.peft.base import PEFTStrategy, Supports

if TYPE_CHECKING:
    from peftlab.backbones.base import Backbone


@dataclass(kw_only=True)
class FullFineTuning(PEFTStrategy, name="full"):
    """Train every weight of the backbone."""

    supports = Supports(quantized=False, adds_nothing=True)
    count = "all"

    def inject(self, backbone: Backbone, *, seed: int) -> None:
        """Let every parameter train that the backbone does not keep frozen."""
        kept_frozen = set(backbone.always_frozen())
        for name, parameter in backbone.model.named_parameters():
            parameter.requires_grad_(name not in kept_frozen)

    def closed_form(self, backbone: Backbone) -> int:
        """Every parameter outside the head, without those always frozen."""
        left_out = {*backbone.always_frozen(), *(name for name, _ in backbone.head_parameters())}
        return sum(p.numel() for name, p in backbone.model.named_parameters() if name not in left_out)
