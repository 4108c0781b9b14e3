"""Linear probing: the classification head alone trains, on the frozen backbone's features.

The floor that every PEFT method has to beat. Trainable besides the head: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peftlab.peft.adapter import Adapter
from peftlab.peft.base import PEFTStrategy, Selection, Supports

if TYPE_CHECKING:
    from peftlab.backbones.base import Backbone


@dataclass(kw_only=True)
class HeadOnly(PEFTStrategy, name="head"):
    """Train the classification head on the frozen backbone."""

    supports = Supports(adds_nothing=True)
    count = "0"

    def select(self, backbone: Backbone) -> Selection:
        """Nothing."""
        return Selection(backbone)

    def build(self, selection: Selection, *, seed: int, batches: Any = None) -> Adapter:
        """Nothing: the head is set trainable for every method alike (``backbone.train_head``)."""
        return Adapter(self, selection.backbone)

    def closed_form(self, backbone: Backbone) -> int:
        """Nothing beside the head."""
        return 0
