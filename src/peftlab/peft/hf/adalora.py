"""AdaLoRA in HF peft's format: the triplets P Λ Q of every layer as lora_B, lora_E (r, 1) and lora_A.

Its scale is alpha / (initial rank + 1e-5), ours alpha / initial rank: Λ takes up the difference. A folder may hold
fewer triplets than the initial rank, those that were kept; the others start here with λ = 0.
"""

from __future__ import annotations

import re
from typing import Any

import torch

from peftlab.errors import PeftlabError
from peftlab.peft.adalora import AdaLoRA
from peftlab.peft.adapter import Adapter
from peftlab.peft.hf.codec import Codec
from peftlab.peft.hf.format import MODEL, HFAdapter, HFFolder, plain_float
from peftlab.peft.hf.lora import common_options, require_plain_base, understands_low_rank
from peftlab.peft.parts import Placed
from peftlab.peft.rank_budget import Prunable

_ADDED_TO_RANK = 1e-5
_STEPS = 1000
"""A nominal length of the run, as peft wants the phases in steps and they are shares here."""
_SCHEDULE = ("total_step", "tinit", "tfinal", "rank_pattern", "deltaT")


class AdaLoRACodec(Codec):
    """ADALORA; its schedule in steps is not taken over, as a new one in shares of the run begins."""

    methods = ("adalora",)

    def write(self, adapter: Adapter) -> HFAdapter:
        """All triplets of every layer, with λ = 0 for the pruned ones.

        Raises:
            PeftlabError: for an embedding or a slice, which peft's AdaLoRA cannot adapt.
        """
        method = adapter.strategy
        assert isinstance(method, AdaLoRA)
        config = {
            "peft_type": "ADALORA",
            "init_r": method.initial_rank,
            "target_r": method.rank,
            "lora_alpha": method.alpha,
            "total_step": _STEPS,
            "tinit": round(method.warmup_fraction * _STEPS),
            "tfinal": round(method.final_fraction * _STEPS),
            "deltaT": method.interval,
            "beta1": method.beta1,
            "beta2": method.beta2,
            "orth_reg_weight": method.orthogonality,
            **common_options(adapter, method.dropout),
        }
        tensors = {}
        for placed in adapter.placed():
            delta, name = _triplets(placed), placed.name
            if delta.embedding or delta.rows is not None:
                what = "an embedding" if delta.embedding else "adapted in slices"
                raise PeftlabError(
                    f"this AdaLoRA cannot be written in the format of HF peft: '{name}' is {what}, and AdaLoRA adapts "
                    "whole linear layers there. Train it with other peft.targets."
                )
            singular = delta.diagonal * (1 + _ADDED_TO_RANK / method.initial_rank)
            tensors[f"{MODEL}{name}.lora_A"] = plain_float(delta.lora_A)
            tensors[f"{MODEL}{name}.lora_B"] = plain_float(delta.lora_B)
            tensors[f"{MODEL}{name}.lora_E"] = plain_float(singular.unsqueeze(1))
        note = f"The schedule in adapter_config.json is in steps of a run of {_STEPS}; set your own before training on."
        return HFAdapter(config, tensors, [note])

    def fields(self, folder: HFFolder) -> tuple[str, dict[str, Any]] | None:
        """See :meth:`Codec.fields`."""
        if folder.peft_type != "ADALORA":
            return None
        require_plain_base(folder)
        understands_low_rank(folder)
        folder.understands(*_SCHEDULE)
        initial_rank = folder.option("init_r", 12)
        return "adalora", {
            "targets": [re.escape(name) for name in folder.modules_with("lora_E")],
            "rank": min(folder.option("target_r", 8), initial_rank),
            "initial_rank": initial_rank,
            "alpha": folder.option("lora_alpha", 8),
            "dropout": folder.option("lora_dropout", 0.0),
            "beta1": folder.option("beta1", 0.85),
            "beta2": folder.option("beta2", 0.85),
            "orthogonality": folder.option("orth_reg_weight", 0.5),
        }

    def load(self, adapter: Adapter, folder: HFFolder) -> None:
        """The triplets of every layer; those that the folder lacks get λ = 0."""
        for placed in adapter.placed():
            delta, name = _triplets(placed), placed.name
            kept = min(folder.tensors[f"{MODEL}{name}.lora_E"].shape[0], delta.rank)
            folder.copy(f"{MODEL}{name}.lora_A", delta.lora_A.data[:kept], adapter.backbone)
            folder.copy(f"{MODEL}{name}.lora_B", delta.lora_B.data[:, :kept], adapter.backbone)
            folder.copy(f"{MODEL}{name}.lora_E", delta.diagonal.data[:kept].unsqueeze(1), adapter.backbone)
            with torch.no_grad():
                delta.diagonal.div_(1 + _ADDED_TO_RANK / delta.rank)
                delta.diagonal[kept:] = 0.0


def _triplets(placed: Placed) -> Prunable:
    assert isinstance(placed.delta, Prunable)
    return placed.delta
