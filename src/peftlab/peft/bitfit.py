"""BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models
(Ben Zaken, Ravfogel & Goldberg 2021, arXiv:2106.10199).

    h = W x + b        b trains, W stays frozen

All bias terms of the trunk train: those of attention, feed-forward, normalisation layers and pooler. The
paper's cheaper variant trains the query biases and those of the widening feed-forward layer alone:
``targets: [query, ffn_up]``. Key biases cancel in the softmax: they count, as in the paper, but change nothing.
Departure: none. A bias that is one tensor for several roles (GPT-2's ``c_attn``) trains as a whole or not at all.

Trainable: the number of biases. BERT-base 102,912, BERT-large 272,384 with the pooler, as the paper counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from peftlab.backbones.role_table import ALL_ROLES
from peftlab.backbones.roles import find_targets
from peftlab.errors import PeftlabError
from peftlab.peft.base import Supports
from peftlab.peft.selective import SelectiveTuning, compressed, matching, own_parameters

if TYPE_CHECKING:
    from peftlab.backbones.base import Backbone


@dataclass(kw_only=True)
class BitFit(SelectiveTuning, name="bitfit"):
    """Train the bias terms of the backbone:  h = W x + b, with W frozen."""

    supports = Supports(adds_nothing=True)
    count = "number of biases"

    targets: list[str] | None = None
    """Roles, or regexes on names of biases or of their modules; null: all biases. Each entry must match."""

    def __post_init__(self) -> None:
        """Raise ValueError for an empty list of targets."""
        if self.targets is not None and not self.targets:
            raise ValueError(
                "peft.targets is empty: null trains all biases, [query, ffn_up] the paper's small variant."
            )

    def chosen(self, backbone: Backbone) -> list[str]:
        """All biases outside the head, or those of the targets."""
        biases = [name for name in own_parameters(backbone) if name.endswith("bias")]
        if not biases:
            raise PeftlabError(
                f"peft=bitfit: this {backbone.architecture} has no bias term outside its head, so there is nothing to "
                "train. Choose a method that scales or adds weights (peft=ia3, peft=layernorm, peft=lora)."
            )
        if self.targets is None:
            return biases
        chosen = {name for entry in self.targets for name in _of_entry(backbone, entry, biases)}
        return [name for name in biases if name in chosen]


def _of_entry(backbone: Backbone, entry: str, biases: list[str]) -> list[str]:
    if entry not in ALL_ROLES:
        by_name = {name: name for name in biases} | {_owner(name): name for name in biases}
        return [by_name[name] for name in matching("peft.targets", entry, by_name, "biases")]
    targets = find_targets(backbone, [entry])
    fused = next((target for target in targets if target.output_slice is not None), None)
    if fused is not None:
        raise PeftlabError(
            f"peft.targets: the biases of role '{entry}' are a part of '{fused.name}.bias', one tensor that trains as "
            f"a whole. Name it instead: peft.targets=['{fused.name.rpartition('.')[2]}']."
        )
    found = [f"{target.name}.bias" for target in targets if f"{target.name}.bias" in biases]
    if not found:
        raise PeftlabError(
            f"peft.targets: role '{entry}' of this {backbone.architecture} has no bias. "
            f"Biases there are (any layer number is *): {', '.join(compressed(biases))}."
        )
    return found


def _owner(name: str) -> str:
    return name.rpartition(".")[0]
