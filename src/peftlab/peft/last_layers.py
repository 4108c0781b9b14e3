"""Fine-tuning the last layers of the backbone, the oldest way to train less.

Used as a baseline by Li & Liang 2021 (Prefix-Tuning, arXiv:2101.00190: "FT-TOP2") and Lee, Tang & Lin 2019
(What Would Elsa Do? Freezing Layers During Transformer Fine-Tuning, arXiv:1911.03090).

    θ = (θ_1 … θ_(L-k) frozen, θ_(L-k+1) … θ_L trained)        L transformer blocks, k = ``layers``

Blocks are found in the structure: the last list of modules in the trunk that is in no other list. Of an
encoder-decoder (T5) these are the decoder's, on which the head reads. The normalisation after the last block
(GPT-2's ``ln_f``) is not part of a block and trains under ``final_norm``.

Trainable: the parameters of k blocks. GPT-2 medium, k = 2: 25,192,448.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from peftlab.errors import PeftlabError, listed
from peftlab.fields import PositiveInt
from peftlab.peft.base import Supports
from peftlab.peft.selective import SelectiveTuning, is_norm, own_parameters

if TYPE_CHECKING:
    from peftlab.backbones.base import Backbone

# Among the siblings of the blocks. DeBERTa's `LayerNorm` there is not one: it normalises relative positions.
_FINAL_NORM = re.compile(r"norm|ln_f|final_\w*norm")


@dataclass(kw_only=True)
class LastLayers(SelectiveTuning, name="last_layers"):
    """Train the last k transformer blocks with all that is in them."""

    supports = Supports(quantized=False, sharded=False, adds_nothing=True)
    count = "parameters of the last k blocks"

    layers: PositiveInt = 2
    """How many blocks train, counted from the last."""
    final_norm: bool = False
    """Train the normalisation after the last block as well (decoders, ModernBERT, T5)."""

    def chosen(self, backbone: Backbone) -> list[str]:
        """The parameters of the last ``layers`` blocks."""
        place, blocks = transformer_blocks(backbone)
        if self.layers > len(blocks):
            raise PeftlabError(
                f"peft.layers={self.layers} is more than this {backbone.architecture} has: {len(blocks)} blocks "
                f"('{place}'). Set peft.layers to at most {len(blocks)}, or choose peft=full."
            )
        starts = [f"{place}.{index}." for index in range(len(blocks) - self.layers, len(blocks))]
        if self.final_norm:
            starts.append(f"{_final_norm(backbone, place)}.")
        return [name for name in own_parameters(backbone) if name.startswith(tuple(starts))]


def transformer_blocks(backbone: Backbone, method: str = "last_layers") -> tuple[str, nn.ModuleList]:
    """Name and list of the transformer blocks, in the order in which they run, for ``method``.

    Raises:
        PeftlabError: if there is none, or its entries are used by several layers.
    """
    own = own_parameters(backbone)
    lists: dict[str, nn.ModuleList] = {}
    for name, module in backbone.model.named_modules():  # an outer list comes before those inside
        if not isinstance(module, nn.ModuleList) or any(name.startswith(f"{outer}.") for outer in lists):
            continue
        if any(parameter.startswith(f"{name}.") for parameter in own):
            lists[name] = module
    if not lists:
        raise PeftlabError(
            f"peft={method}: this {backbone.architecture} has no list of blocks. Choose its layers by name: "
            "peft=parameters peft.patterns=[…]."
        )
    place, blocks = list(lists.items())[-1]
    config = getattr(backbone.model, "config", None)
    layers = getattr(config, "num_hidden_layers", len(blocks))
    if layers > len(blocks) and not getattr(config, "is_encoder_decoder", False):
        raise PeftlabError(
            f"peft={method}: {backbone.architecture} runs its {layers} layers on {len(blocks)} shared block"
            f"{'s' * (len(blocks) > 1)} ('{place}'), so that none of them can be told from the others. "
            "Choose peft=full, or a method that adds weights (peft=lora)."
        )
    return place, blocks


def _final_norm(backbone: Backbone, place: str) -> str:
    parent = place.rpartition(".")[0]
    siblings = {
        name: module for name, module in backbone.model.get_submodule(parent).named_children() if is_norm(module)
    }
    found = [name for name in siblings if _FINAL_NORM.fullmatch(name)]
    if not found:
        raise PeftlabError(
            f"peft.final_norm=true: this {backbone.architecture} has no normalisation after its last block (beside "
            f"'{place}': {listed(siblings)}); it normalises inside the blocks. Set peft.final_norm=false."
        )
    return f"{parent}.{found[-1]}" if parent else found[-1]
