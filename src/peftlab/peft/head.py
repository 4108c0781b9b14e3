"""Linear probing: the classification head alone trains, on the frozen backbone's features.

The floor that every PEFT method has to beat. Trainable besides the head: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from peftlab.peft.base import PEFTStrategy, Supports

if TYPE_CHECKING:
    from peftlab.backbones.base import Backbone


@dataclass(kw_only=True)
class HeadOnly(PEFTStrategy, name="head"):
    """Train the classification head on the frozen backbone."""

    supports = Supports(adds_nothing=True)
    count = "0"

    def inject(self, backbone: Backbone, *, seed: int) -> None:
        """Add nothing: the head is set trainable for every method alike (``backbone.train_head``)."""

    def closed_form(self, backbone: Backbone) -> int:
        """Nothing beside the head."""
        return 0
