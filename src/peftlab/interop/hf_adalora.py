"""AdaLoRA in HF peft's format: the triplets P Λ Q of every layer as lora_B, lora_E (r, 1) and lora_A.

Its scale is alpha / (initial rank + 1e-5), ours alpha / initial rank: Λ takes up the difference. A folder may hold
fewer triplets than the initial rank, those that were kept; the others start here with λ = 0.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from peftlab.errors import PeftlabError
from peftlab.interop.hf_format import MODEL, HFAdapter, HFFolder, plain_float
from peftlab.interop.hf_low_rank import common_options, require_plain_base, understands_low_rank
from peftlab.peft.low_rank import LowRankLayer, layers_of
from peftlab.peft.rank_budget import PrunableUpdate, RankBudgetStrategy

if TYPE_CHECKING:
    from peftlab.backbones.base import Backbone

_ADDED_TO_RANK = 1e-5
_STEPS = 1000
"""A nominal length of the run, as peft wants the phases in steps and they are shares here."""
_SCHEDULE = ("total_step", "tinit", "tfinal", "rank_pattern", "deltaT")


def adalora_adapter(backbone: Backbone, strategy: RankBudgetStrategy) -> HFAdapter:
    """All triplets of every layer.

    Raises:
        PeftlabError: for an embedding or a slice, which peft's AdaLoRA cannot adapt.
    """
    config = {
        "peft_type": "ADALORA",
        "init_r": strategy.initial_rank,
        "target_r": strategy.rank,
        "lora_alpha": strategy.alpha,
        "total_step": _STEPS,
        "tinit": round(strategy.warmup_fraction * _STEPS),
        "tfinal": round(strategy.final_fraction * _STEPS),
        "deltaT": strategy.interval,
        **{name: getattr(strategy, name) for name in ("beta1", "beta2")},
        "orth_reg_weight": getattr(strategy, "orthogonality", 0.5),
        **common_options(backbone, strategy.dropout),
    }
    tensors: dict[str, Tensor] = {}
    for name, layer in layers_of(backbone, LowRankLayer):
        update = _update(layer)
        if isinstance(layer.base, nn.Embedding) or update.output_slice is not None:
            what = "an embedding" if isinstance(layer.base, nn.Embedding) else "adapted in slices"
            raise PeftlabError(
                f"this AdaLoRA cannot be written in the format of HF peft: '{name}' is {what}, and AdaLoRA adapts "
                "whole linear layers there. Train it with other peft.targets."
            )
        singular = update.diagonal * (1 + _ADDED_TO_RANK / strategy.initial_rank)
        tensors[f"{MODEL}{name}.lora_A"] = plain_float(update.A)
        tensors[f"{MODEL}{name}.lora_B"] = plain_float(update.B)
        tensors[f"{MODEL}{name}.lora_E"] = plain_float(singular.unsqueeze(1))
    note = f"The schedule in adapter_config.json is in steps of a run of {_STEPS}; set your own before training on."
    return HFAdapter(config, tensors, [note])


def adalora_fields(folder: HFFolder) -> dict[str, Any] | None:
    """Fields of AdaLoRA; None for another method."""
    if folder.peft_type != "ADALORA":
        return None
    require_plain_base(folder)
    understands_low_rank(folder)
    folder.understands(*_SCHEDULE)
    initial_rank = folder.option("init_r", 12)
    return {
        "targets": [re.escape(name) for name in folder.modules_with("lora_E")],
        "rank": min(folder.option("target_r", 8), initial_rank),
        "initial_rank": initial_rank,
        "alpha": folder.option("lora_alpha", 8),
        "dropout": folder.option("lora_dropout", 0.0),
        "beta1": folder.option("beta1", 0.85),
        "beta2": folder.option("beta2", 0.85),
        "orthogonality": folder.option("orth_reg_weight", 0.5),
    }


def load_triplets(backbone: Backbone, folder: HFFolder) -> None:
    """Copy the triplets of every layer; those that the folder lacks get λ = 0."""
    for name, layer in layers_of(backbone, LowRankLayer):
        update = _update(layer)
        singular = folder.tensors[f"{MODEL}{name}.lora_E"]
        kept = min(singular.shape[0], update.rank)
        folder.copy(f"{MODEL}{name}.lora_A", update.A.data[:kept], backbone)
        folder.copy(f"{MODEL}{name}.lora_B", update.B.data[:, :kept], backbone)
        folder.copy(f"{MODEL}{name}.lora_E", update.diagonal.data[:kept].unsqueeze(1), backbone)
        with torch.no_grad():
            update.diagonal.div_(1 + _ADDED_TO_RANK / update.rank)
            update.diagonal[kept:] = 0.0


def _update(layer: LowRankLayer) -> PrunableUpdate:
    update = layer.all_updates()[0]
    assert isinstance(update, PrunableUpdate)
    return update
