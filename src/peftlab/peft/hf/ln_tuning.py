"""LN-tuning in HF peft's format: γ and β of every trained normalisation layer."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from peftlab.peft.adapter import Adapter
from peftlab.peft.hf.codec import Codec
from peftlab.peft.hf.format import MODEL, HFAdapter, HFFolder, module_names, plain_float
from peftlab.peft.names import inside, live_parameter


class LNTuningCodec(Codec):
    """LN_TUNING."""

    methods = ("layernorm",)

    def write(self, adapter: Adapter) -> HFAdapter:
        """γ and β of every trained layer; a β that does not train as it is."""
        live = {name: live_parameter(adapter.model, name) for name in adapter.own_names()}
        names = list(dict.fromkeys(name.rpartition(".")[0] for name in live))
        tensors: dict[str, Tensor] = {}
        for name in names:
            for leaf in ("weight", "bias"):
                frozen = getattr(inside(adapter.model.get_submodule(name)), leaf, None)
                tensor = live.get(f"{name}.{leaf}", frozen)
                if tensor is not None:
                    tensors[f"{MODEL}{name}.ln_tuning_layers.{leaf}"] = plain_float(tensor)
        return HFAdapter({"peft_type": "LN_TUNING", "target_modules": module_names(adapter.backbone, names)}, tensors)

    def fields(self, folder: HFFolder) -> tuple[str, dict[str, Any]] | None:
        """See :meth:`Codec.fields`."""
        if folder.peft_type != "LN_TUNING":
            return None
        folder.understands("target_modules", "exclude_modules")
        return "layernorm", {"targets": [re.escape(name) for name in folder.modules_with("ln_tuning_layers.weight")]}

    def load(self, adapter: Adapter, folder: HFFolder) -> None:
        """γ and β of every layer."""
        for name in adapter.own_names():
            layer, _, leaf = name.rpartition(".")
            tensor = live_parameter(adapter.model, name)
            folder.copy(f"{MODEL}{layer}.ln_tuning_layers.{leaf}", tensor, adapter.backbone)
