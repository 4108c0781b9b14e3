"""(IA)³ in HF peft's format: one vector ``ia3_l`` a layer, a column for its outputs or a row for its inputs."""

from __future__ import annotations

import re
from typing import Any

import torch

from peftlab.backbones.role_table import output_features
from peftlab.errors import PeftlabError
from peftlab.peft.adapter import Adapter
from peftlab.peft.hf.codec import Codec
from peftlab.peft.hf.format import MODEL, HFAdapter, HFFolder, module_names, plain_float
from peftlab.peft.hf.lora import layers_of
from peftlab.peft.ia3 import InputScale, Scale
from peftlab.peft.surgery import is_conv1d


class IA3Codec(Codec):
    """IA3."""

    methods = ("ia3",)

    def write(self, adapter: Adapter) -> HFAdapter:
        """One vector a layer; outputs outside of the scaled slices are scaled by one."""
        tensors = {}
        fed = []
        layers = layers_of(adapter)
        for name, (layer, all_placed) in layers.items():
            deltas = [placed.delta for placed in all_placed if isinstance(placed.delta, Scale)]
            inputs = [delta for delta in deltas if isinstance(delta, InputScale)]
            if inputs and len(deltas) > 1:
                raise PeftlabError(
                    f"this (IA)³ cannot be written in the format of HF peft: '{name}' has its inputs and its outputs "
                    "scaled, and a layer has one of the two there."
                )
            if inputs:
                fed.append(name)
                scale = plain_float(inputs[0].scale).unsqueeze(0)  # (1, in)
            else:
                scale = torch.ones(output_features(layer.base), 1)  # (out, 1)
                for delta in deltas:
                    scale[delta.rows or slice(None), 0] = plain_float(delta.scale)
            tensors[f"{MODEL}{name}.ia3_l"] = scale
        config = {
            "peft_type": "IA3",
            "target_modules": module_names(adapter.backbone, list(layers)),
            "feedforward_modules": module_names(adapter.backbone, fed),
            "fan_in_fan_out": any(is_conv1d(layer.base) for layer, _ in layers.values()),
        }
        return HFAdapter(config, tensors)

    def fields(self, folder: HFFolder) -> tuple[str, dict[str, Any]] | None:
        """See :meth:`Codec.fields`."""
        if folder.peft_type != "IA3":
            return None
        folder.understands("target_modules", "feedforward_modules", "exclude_modules", "fan_in_fan_out")
        folder.understands("init_ia3_weights")
        names = folder.modules_with("ia3_l")
        fed = {name for name in names if folder.tensors[f"{MODEL}{name}.ia3_l"].shape[0] == 1}
        return "ia3", {
            "targets": [re.escape(name) for name in names if name not in fed],
            "feedforward_targets": [re.escape(name) for name in names if name in fed],
        }

    def load(self, adapter: Adapter, folder: HFFolder) -> None:
        """The scales of every layer."""
        for placed in adapter.placed():
            assert isinstance(placed.delta, Scale)
            folder.copy(f"{MODEL}{placed.name}.ia3_l", placed.delta.scale, adapter.backbone)
