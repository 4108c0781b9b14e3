"""Low-rank updates in HF peft's format: what LoRA, DoRA and AdaLoRA share.

A layer has one update there, for its whole output. Ours may have one for each slice of a fused projection, and may
subtract the start of PiSSA. Both are one update of a higher rank, exactly:

    s₁ B₁ A₁ in rows 1, s₂ B₂ A₂ in rows 2   =   s₁ · [[B₁, 0], [0, (s₂/s₁) B₂]] · [A₁ ; A₂]
    s (B A − B₀ A₀)                           =   s · [B, −B₀] · [A ; A₀]
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from peftlab.backbones.role_table import output_features
from peftlab.errors import PeftlabError
from peftlab.interop.hf_files import WEIGHTS_FILE
from peftlab.interop.hf_format import MODEL, HFAdapter, HFFolder, module_names, plain_float
from peftlab.peft.low_rank import LowRankLayer, layers_of
from peftlab.peft.surgery import is_conv1d

if TYPE_CHECKING:
    from peftlab.backbones.base import Backbone

A_KEYS = ("lora_A.weight", "lora_embedding_A")
"""Keys of the factor A of a linear layer, and of an embedding."""
B_KEYS = ("lora_B.weight", "lora_embedding_B")
KINDS = (nn.Linear, nn.Embedding)

_HOW_IT_STARTED = ("init_lora_weights", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules")
_WHERE = ("exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out", "megatron_core")
_WITHOUT_EFFECT = ("qalora_group_size", "ephemeral_gpu_offload")


@dataclass(frozen=True)
class WholeUpdate:
    """s · B A for the whole output of a layer."""

    A: Tensor
    """(r, in)"""
    B: Tensor
    """(out, r)"""
    scale: float

    @property
    def rank(self) -> int:
        """Rank r."""
        return self.A.shape[0]


def whole_updates(backbone: Backbone) -> dict[str, WholeUpdate]:
    """The updates of every adapted layer as one, by the layer's name."""
    with torch.no_grad():
        return {name: _whole(layer) for name, layer in layers_of(backbone, LowRankLayer)}


def _whole(layer: LowRankLayer) -> WholeUpdate:
    updates = layer.all_updates()
    scale = updates[0].scale
    ups, downs = [], []
    for update in updates:
        down, up = update.factors()
        up = up * (update.scale / scale) if update.scale != scale else up
        if update.output_slice is not None:
            rows = torch.zeros(layer_outputs(layer), up.shape[1])
            rows[update.output_slice] = plain_float(up)
            up = rows
        ups.append(plain_float(up))
        downs.append(plain_float(down))
    return WholeUpdate(torch.cat(downs), torch.cat(ups, dim=1), scale)


def layer_outputs(layer: LowRankLayer) -> int:
    """Outputs of the layer, all slices together."""
    return output_features(layer.base)


def lora_adapter(backbone: Backbone, *, dropout: float, rank_stabilized: bool = False, **options: Any) -> HFAdapter:
    """The low-rank updates in ``backbone`` as ``peft_type`` LORA; ``options`` go into its config."""
    updates = whole_updates(backbone)

    def alpha_of(update: WholeUpdate) -> float:
        return _tidy(update.scale * (math.sqrt(update.rank) if rank_stabilized else update.rank))

    ranks = {name: update.rank for name, update in updates.items()}
    alphas = {name: alpha_of(update) for name, update in updates.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": _pattern(backbone, ranks, rank),
        "alpha_pattern": _pattern(backbone, alphas, alpha),
        "use_rslora": rank_stabilized,
        **common_options(backbone, dropout),
        **options,
    }
    tensors: dict[str, Tensor] = {}
    for name, update in updates.items():
        layer = backbone.model.get_submodule(name)
        kind = 1 if isinstance(layer.base, nn.Embedding) else 0
        tensors[f"{MODEL}{name}.{A_KEYS[kind]}"] = update.A
        tensors[f"{MODEL}{name}.{B_KEYS[kind]}"] = update.B
    return HFAdapter(config, tensors)


def common_options(backbone: Backbone, dropout: float) -> dict[str, Any]:
    """Options of every low-rank adapter."""
    layers = layers_of(backbone, LowRankLayer)
    return {
        "lora_dropout": dropout,
        "target_modules": module_names(backbone, [name for name, _ in layers]),
        "fan_in_fan_out": any(is_conv1d(layer.base) for _, layer in layers),
        "init_lora_weights": True,
        "bias": "none",
    }


def _pattern(backbone: Backbone, values: dict[str, Any], usual: Any) -> dict[str, Any]:
    """Regex → value, for the layers that have another than the ``usual`` one."""
    pattern: dict[str, Any] = {}
    for value in sorted(set(values.values()) - {usual}):
        names = [name for name, own in values.items() if own == value]
        pattern |= {re.escape(entry): value for entry in module_names(backbone, names)}
    return pattern


def _tidy(value: float) -> float | int:
    """Without the last digits that multiplying has blurred: 16, not 15.999999999999998."""
    rounded = round(value, 10)
    return int(rounded) if rounded.is_integer() else rounded


def require_plain_base(folder: HFFolder) -> None:
    """Raise PeftlabError if the adapter stands beside a weight that it has changed at its start.

    Raises:
        PeftlabError: naming ``init_lora_weights``.
    """
    start = folder.option("init_lora_weights", True)
    if start not in (True, False, "gaussian", "orthogonal", "eva"):
        raise PeftlabError(
            f"peft.path: the adapter in {folder.path} was started by init_lora_weights={start}, which changes the "
            "backbone's own weights; they are not in the folder. Save it with HF peft as plain LoRA "
            "(save_pretrained with path_initial_model_for_weight_conversion), and import that."
        )


def lora_fields(folder: HFFolder) -> dict[str, Any]:
    """Fields of a method with fixed ranks: which modules, their ranks and alphas."""
    require_plain_base(folder)
    names = folder.modules_with(*A_KEYS)
    ranks = {name: _rank(folder, name) for name in names}
    default = folder.option("lora_alpha", 8)
    alpha_pattern: dict[str, float] = folder.option("alpha_pattern", {})
    alphas = {name: _by_pattern(alpha_pattern, name, default) for name in names}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    understands_low_rank(folder)
    return {
        "targets": [re.escape(name) for name in names],
        "rank": rank,
        "alpha": alpha,
        "rank_pattern": {re.escape(name): own for name, own in ranks.items() if own != rank} or None,
        "alpha_pattern": {re.escape(name): own for name, own in alphas.items() if own != alpha} or None,
        "rank_stabilized": folder.option("use_rslora", False),
        "dropout": folder.option("lora_dropout", 0.0),
    }


def understands_low_rank(folder: HFFolder) -> None:
    """Note the options of a low-rank adapter that its tensors answer."""
    folder.understands(*_HOW_IT_STARTED, *_WHERE, *_WITHOUT_EFFECT)


def _rank(folder: HFFolder, name: str) -> int:
    key = next(key for ending in A_KEYS if (key := f"{MODEL}{name}.{ending}") in folder.tensors)
    tensor = folder.tensors[key]
    if tensor.dim() != 2 or not tensor.shape[0]:
        raise PeftlabError(
            f"peft.path: '{key}' in {folder.path / WEIGHTS_FILE} is {tuple(tensor.shape)}, and must be (r, inputs) "
            "with a rank r from 1 on. The file is damaged: copy it anew."
        )
    return tensor.shape[0]


def _by_pattern(pattern: dict[str, float], name: str, default: float) -> float:
    """The value that peft finds for the module called ``name``."""
    return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", name)), default)


def load_factors(backbone: Backbone, folder: HFFolder) -> None:
    """Copy A and B of every layer, as LORA has them."""
    for name, layer in layers_of(backbone, LowRankLayer):
        (update,) = layer.all_updates()
        kind = 1 if isinstance(layer.base, nn.Embedding) else 0
        folder.copy(f"{MODEL}{name}.{A_KEYS[kind]}", update.A, backbone)
        folder.copy(f"{MODEL}{name}.{B_KEYS[kind]}", update.B, backbone)
        if kind:  # peft saves an adapted embedding as well
            folder.require_same(f"{MODEL}{name}.base_layer.weight", layer.weight, "an embedding")
