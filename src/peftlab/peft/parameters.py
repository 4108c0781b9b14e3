"""Train the parameters of the backbone whose names match.

For ablations and for selections that have no name of their own. The default trains attention alone, which
Touvron et al. 2022 (Three things everyone should know about Vision Transformers, arXiv:2203.09795)
find enough to adapt a transformer:

    θ_attention trains, everything else stays frozen

A pattern is a regular expression for a parameter's whole name, or the end of the name from a dot on
(``LayerNorm.weight``). The default means everything inside modules called attention or attn, in any spelling:
projections with their biases, and in BERT the LayerNorm that stands in the attention's output.

Trainable: the elements of what matches. A weight stored in 4 or 8 bits cannot train; floats beside it can.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from peftlab.peft.base import Supports
from peftlab.peft.selective import SelectiveTuning, matching, own_parameters

if TYPE_CHECKING:
    from peftlab.backbones.base import Backbone


@dataclass(kw_only=True)
class NamedParameters(SelectiveTuning, name="parameters"):
    """Train the backbone's parameters whose names match one of the patterns."""

    supports = Supports(adds_nothing=True)
    count = "elements of what matches"

    patterns: list[str] = field(default_factory=lambda: [r".*(?i:attn|attention)\..*"])
    """Regexes on whole parameter names, or ends of names from a dot on. Each entry must match something."""

    def __post_init__(self) -> None:
        """Raise ValueError for an empty list of patterns."""
        if not self.patterns:
            raise ValueError("peft.patterns is empty: name at least one, for example ['.*bias'].")

    def chosen(self, backbone: Backbone) -> list[str]:
        """The matching parameters outside the head."""
        own = own_parameters(backbone)
        chosen = {
            name for entry in self.patterns for name in matching("peft.patterns", entry, own, "trainable parameters")
        }
        return [name for name in own if name in chosen]
