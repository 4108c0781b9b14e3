"""Methods of HF peft's own (``peft=hf_peft``) in its format: its config, and the tensors as it names them itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from peftlab.errors import PeftlabError, listed
from peftlab.peft.adapter import Adapter
from peftlab.peft.hf.codec import Codec
from peftlab.peft.hf.format import MODEL, HFAdapter, module_names, plain_float
from peftlab.peft.hf_layers import HFPeftAdapter
from peftlab.peft.hf_peft import HFPeft

TYPES = frozenset(
    {
        "BOFT", "C3A", "DELORA", "FOURIERFT", "GRALORA", "HIRA", "HRA", "IA3", "LN_TUNING", "LOHA", "LOKR", "LORA",
        "MISS", "OFT", "ROAD", "SHIRA", "WAVEFT",
    }
)  # fmt: skip
"""Types whose folder is known to compute the same when HF peft has loaded it; the tests walk them."""

_PLAIN_STARTS = (True, False, "gaussian", "orthogonal")
"""``init_lora_weights`` that leave the backbone's own weights alone."""
_OF_THE_BACKBONE = (
    "target_parameters",
    "layer_replication",
    "trainable_token_indices",
    "loftq_config",
    "corda_config",
    "eva_config",
    "lora_ga_config",
)
"""Options of LORA that reach further than its layers."""


class HFPeftCodec(Codec):
    """HF peft's own config and tensors. Written only: what they say is read as the method of ours that computes it."""

    methods = ("hf_peft",)

    def write(self, adapter: Adapter) -> HFAdapter:
        """The adapter that HF peft has put into the model.

        Raises:
            PeftlabError: if its folder would not hold all that it computes.
        """
        method = adapter.strategy
        assert isinstance(adapter, HFPeftAdapter)
        assert isinstance(method, HFPeft)
        _require_sound(method.peft_type, method.options)
        from peft import get_peft_model_state_dict

        model: Any = adapter.model
        config: dict[str, Any] = model.peft_config["default"].to_dict()
        config = {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()}
        names = list(adapter.layers)
        config |= {"peft_type": method.peft_type, "target_modules": module_names(adapter.backbone, names)}
        # Names say which layers there are: what they were chosen by is not needed, and may mean others elsewhere.
        for name in ("exclude_modules", "layers_to_transform", "layers_pattern"):
            if name in config:
                config[name] = None
        if "feedforward_modules" in config:
            fed = [name for name, layer in adapter.layers.items() if layer.is_feedforward]
            config["feedforward_modules"] = module_names(adapter.backbone, fed)
        tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
        return HFAdapter(config, {f"{MODEL}{name}": _plain(tensor) for name, tensor in tensors.items()})


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """As the file holds it; places and permutations stay whole numbers."""
    return plain_float(tensor) if tensor.is_floating_point() else tensor.detach().cpu().contiguous()


def _require_sound(peft_type: str, options: Mapping[str, Any]) -> None:
    merged = "Export with --merged, if the type can be merged: that is a plain classifier of transformers."
    if peft_type not in TYPES:
        raise PeftlabError(
            f"peft=hf_peft with peft.peft_type={peft_type} is not written as a folder of HF peft: it was not tried "
            f"whether all that it computes is in its file. Types that are written: {listed(TYPES)}. {merged}"
        )
    start = options.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        raise PeftlabError(
            f"peft.options.init_lora_weights={start} changes the backbone's own weights, which a folder of HF peft "
            f"does not hold. {merged}"
        )
    if reaching := [name for name in _OF_THE_BACKBONE if options.get(name)]:
        raise PeftlabError(
            f"peft.options.{reaching[0]} reaches further than the adapter's layers, so its folder would not hold all "
            f"that it computes. {merged}"
        )
