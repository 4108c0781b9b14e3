"""Full fine-tuning: the baseline that PEFT methods are measured against.

Every parameter of the backbone trains, except those that the backbone keeps frozen by its own config
(``backbone.freeze`` of the text classifier). Trainable: all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peftlab.peft.adapter import Adapter
from peftlab.peft.base import PEFTStrategy, Selection, Supports
from peftlab.peft.selective import own_parameters

if TYPE_CHECKING:
    from peftlab.backbones.base import Backbone


@dataclass(kw_only=True)
class FullFineTuning(PEFTStrategy, name="full"):
    """Train every weight of the backbone."""

    supports = Supports(quantized=False, sharded=False, adds_nothing=True)
    count = "all"

    def select(self, backbone: Backbone) -> Selection:
        """Every parameter outside the head that the backbone does not keep frozen."""
        return Selection(backbone, trains=list(own_parameters(backbone)))

    def build(self, selection: Selection, *, seed: int, batches: Any = None) -> Adapter:
        """Let them train in the types that they are stored in; ``seed`` decides nothing."""
        adapter = Adapter(self, selection.backbone)
        adapter.train_own(selection.trains, in_float32=False)
        return adapter

    def closed_form(self, backbone: Backbone) -> int:
        """Every parameter outside the head, without those always frozen."""
        return sum(parameter.numel() for parameter in own_parameters(backbone).values())
