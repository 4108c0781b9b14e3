"""VeRA in HF peft's format: two vectors a layer, and the shared matrices once."""

from __future__ import annotations

import re
from typing import Any

from peftlab.errors import PeftlabError
from peftlab.peft.adapter import Adapter
from peftlab.peft.hf.codec import Codec
from peftlab.peft.hf.format import MODEL, HFAdapter, HFFolder, module_names, plain_float
from peftlab.peft.hf.lora import layers_of
from peftlab.peft.surgery import is_conv1d
from peftlab.peft.vera import PROJECTION, VeRA, VeRADelta


class VeRACodec(Codec):
    """VERA, with the shared matrices."""

    methods = ("vera",)

    def write(self, adapter: Adapter) -> HFAdapter:
        """The vectors of every layer, and the shared matrices once."""
        method = adapter.strategy
        assert isinstance(method, VeRA)
        projection = adapter.modules()[PROJECTION]
        tensors = {f"base_model.vera_{letter}": plain_float(matrix) for letter, matrix in projection.named_buffers()}
        for placed in adapter.placed():
            delta, name = placed.delta, placed.name
            assert isinstance(delta, VeRADelta)
            if delta.rows is not None:
                raise PeftlabError(
                    f"this VeRA cannot be written in the format of HF peft: '{name}' is adapted in slices, each with "
                    "the leading rows of B, and a whole layer has other rows there. Train it on whole modules: "
                    "peft.targets with their names."
                )
            tensors[f"{MODEL}{name}.vera_lambda_d"] = plain_float(delta.d)
            tensors[f"{MODEL}{name}.vera_lambda_b"] = plain_float(delta.b)
        layers = layers_of(adapter)
        config = {
            "peft_type": "VERA",
            "r": method.rank,
            "target_modules": module_names(adapter.backbone, list(layers)),
            "vera_dropout": method.dropout,
            "d_initial": method.d_initial,
            "projection_prng_key": 0,
            "save_projection": True,
            "fan_in_fan_out": any(is_conv1d(layer.base) for layer, _ in layers.values()),
            "bias": "none",
        }
        return HFAdapter(config, tensors)

    def fields(self, folder: HFFolder) -> tuple[str, dict[str, Any]] | None:
        """See :meth:`Codec.fields`."""
        if folder.peft_type != "VERA":
            return None
        if "base_model.vera_A" not in folder.tensors:
            raise PeftlabError(
                f"peft.path: {folder.path} holds no vera_A and vera_B (save_projection=false): they come from HF "
                "peft's own random numbers, and the vectors mean nothing without them. Save it with "
                "save_projection=True."
            )
        folder.understands("r", "target_modules", "fan_in_fan_out", "layers_to_transform", "layers_pattern")
        folder.understands("d_initial", "init_weights", "projection_prng_key", "save_projection")
        return "vera", {
            "rank": folder.tensors["base_model.vera_A"].shape[0],
            "targets": [re.escape(name) for name in folder.modules_with("vera_lambda_d")],
            "dropout": folder.option("vera_dropout", 0.0),
        }

    def load(self, adapter: Adapter, folder: HFFolder) -> None:
        """The shared matrices and the vectors of every layer."""
        for letter, matrix in adapter.modules()[PROJECTION].named_buffers():
            folder.copy(f"base_model.vera_{letter}", matrix, adapter.backbone)
        for placed in adapter.placed():
            assert isinstance(placed.delta, VeRADelta)
            folder.copy(f"{MODEL}{placed.name}.vera_lambda_d", placed.delta.d, adapter.backbone)
            folder.copy(f"{MODEL}{placed.name}.vera_lambda_b", placed.delta.b, adapter.backbone)
