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
from typing import Any

import torch
from torch import Tensor, nn

from peftlab.backbones.base import Backbone
from peftlab.backbones.role_table import output_features
from peftlab.errors import PeftlabError
from peftlab.peft.adapter import Adapter
from peftlab.peft.delta import AdaptedLayer
from peftlab.peft.dora import DoRA, DoRADelta
from peftlab.peft.hf.codec import Codec
from peftlab.peft.hf.files import WEIGHTS_FILE
from peftlab.peft.hf.format import MODEL, HFAdapter, HFFolder, module_names, plain_float
from peftlab.peft.lora import LoRA
from peftlab.peft.low_rank import LowRank
from peftlab.peft.names import live_parameter
from peftlab.peft.parts import Placed
from peftlab.peft.rank_budget import RankBudgetStrategy
from peftlab.peft.surgery import is_conv1d, weight_matrix

A_KEYS = ("lora_A.weight", "lora_embedding_A")
"""Keys of the factor A of a linear layer, and of an embedding."""
B_KEYS = ("lora_B.weight", "lora_embedding_B")
_MAGNITUDE_KEY = "lora_magnitude_vector"
"""What HF peft calls m of DoRA."""

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


class LoRACodec(Codec):
    """LORA without a magnitude: PiSSA's at twice the rank, slices as blocks, and the biases that train."""

    methods = ("lora",)

    def write(self, adapter: Adapter) -> HFAdapter:
        """A and B of every layer, and the biases."""
        method = adapter.strategy
        assert isinstance(method, LoRA)
        said = lora_adapter(adapter, dropout=method.dropout, rank_stabilized=method.rank_stabilized, bias=method.bias)
        said.tensors |= {key: plain_float(bias) for key, bias in _biases(adapter).items()}
        return said

    def fields(self, folder: HFFolder) -> tuple[str, dict[str, Any]] | None:
        """See :meth:`Codec.fields`."""
        if folder.peft_type != "LORA" or folder.option("use_dora", False):
            return None
        return "lora", {**lora_fields(folder), "bias": folder.option("bias", "none")}

    def load(self, adapter: Adapter, folder: HFFolder) -> None:
        """A and B, and the biases if they train."""
        load_factors(adapter, folder)
        for key, bias in _biases(adapter).items():
            folder.copy(key, bias, adapter.backbone)


def _biases(adapter: Adapter) -> dict[str, nn.Parameter]:
    """The biases that train, by HF peft's keys."""
    layers = {placed.name for placed in adapter.placed()}
    keys = {}
    for name in adapter.own_names():
        layer, _, leaf = name.rpartition(".")
        keys[name] = f"{MODEL}{layer}.base_layer.{leaf}" if layer in layers else f"{MODEL}{name}"
    return {key: live_parameter(adapter.model, name) for name, key in keys.items()}


class DoRACodec(Codec):
    """LORA with a magnitude; rows without an update keep the norm that they have."""

    methods = ("dora",)

    def write(self, adapter: Adapter) -> HFAdapter:
        """A, B and the magnitude of every layer."""
        method = adapter.strategy
        assert isinstance(method, DoRA)
        said = lora_adapter(adapter, dropout=method.dropout, rank_stabilized=method.rank_stabilized, use_dora=True)
        for name, (layer, all_placed) in layers_of(adapter).items():
            magnitude = plain_float(torch.linalg.vector_norm(weight_matrix(layer.base).detach().float(), dim=1))
            for placed in all_placed:
                assert isinstance(placed.delta, DoRADelta)
                magnitude[placed.delta.rows or slice(None)] = plain_float(placed.delta.magnitude)
            said.tensors[f"{MODEL}{name}.{_MAGNITUDE_KEY}"] = magnitude
        return said

    def fields(self, folder: HFFolder) -> tuple[str, dict[str, Any]] | None:
        """See :meth:`Codec.fields`; dropout as HF peft has it."""
        if folder.peft_type != "LORA" or not folder.option("use_dora", False):
            return None
        return "dora", {**lora_fields(folder), "dropout_mode": "peft"}

    def load(self, adapter: Adapter, folder: HFFolder) -> None:
        """A, B and the magnitude."""
        load_factors(adapter, folder)
        for placed in adapter.placed():
            assert isinstance(placed.delta, DoRADelta)
            folder.copy(f"{MODEL}{placed.name}.{_MAGNITUDE_KEY}", placed.delta.magnitude, adapter.backbone)


class DynamicDoRACodec(Codec):
    """Plain LORA of the initial rank, which it computes: Σ c_i B_i A_i = (B diag(c)) A; written only."""

    methods = ("dynamic_dora",)

    def write(self, adapter: Adapter) -> HFAdapter:
        """A and B diag(c) of every layer."""
        method = adapter.strategy
        assert isinstance(method, RankBudgetStrategy)
        said = lora_adapter(adapter, dropout=method.dropout)
        said.notes.append("The components' weights are multiplied into B: peft knows it as plain LoRA.")
        return said


def layers_of(adapter: Adapter) -> dict[str, tuple[AdaptedLayer, list[Placed]]]:
    """The layers that ``adapter`` stands on, in the order of the model, and its deltas on each."""
    found: dict[str, tuple[AdaptedLayer, list[Placed]]] = {}
    for placed in adapter.placed():
        found.setdefault(placed.name, (placed.layer, []))[1].append(placed)
    for placed in adapter.placed():
        found |= dict.fromkeys(placed.also, found[placed.name])  # HF peft adapts each place on its own
    return {name: found[name] for name, _ in adapter.model.named_modules(remove_duplicate=False) if name in found}


@torch.no_grad()
def whole_update(layer: AdaptedLayer, all_placed: list[Placed]) -> WholeUpdate:
    """The low-rank updates of one layer as one of its whole output."""
    deltas = [placed.delta for placed in all_placed if isinstance(placed.delta, LowRank)]
    scale = deltas[0].scale
    ups, downs = [], []
    for delta in deltas:
        down, up = delta.factors()
        up = up * (delta.scale / scale) if delta.scale != scale else up
        if delta.rows is not None:
            rows = torch.zeros(output_features(layer.base), up.shape[1])
            rows[delta.rows] = plain_float(up)
            up = rows
        ups.append(plain_float(up))
        downs.append(plain_float(down))
    return WholeUpdate(torch.cat(downs), torch.cat(ups, dim=1), scale)


def lora_adapter(adapter: Adapter, *, dropout: float, rank_stabilized: bool = False, **options: Any) -> HFAdapter:
    """The low-rank updates of ``adapter`` as ``peft_type`` LORA; ``options`` go into its config."""
    backbone, layers = adapter.backbone, layers_of(adapter)
    updates = {name: whole_update(*layer) for name, layer in layers.items()}

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
        **common_options(adapter, dropout),
        **options,
    }
    tensors: dict[str, Tensor] = {}
    for name, update in updates.items():
        kind = 1 if isinstance(layers[name][0].base, nn.Embedding) else 0
        tensors[f"{MODEL}{name}.{A_KEYS[kind]}"] = update.A
        tensors[f"{MODEL}{name}.{B_KEYS[kind]}"] = update.B
    return HFAdapter(config, tensors)


def common_options(adapter: Adapter, dropout: float) -> dict[str, Any]:
    """Options of every low-rank adapter."""
    layers = layers_of(adapter)
    return {
        "lora_dropout": dropout,
        "target_modules": module_names(adapter.backbone, list(layers)),
        "fan_in_fan_out": any(is_conv1d(layer.base) for layer, _ in layers.values()),
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


def load_factors(adapter: Adapter, folder: HFFolder) -> None:
    """Copy A and B of every layer, as LORA has them."""
    for placed in adapter.placed():
        delta, name = placed.delta, placed.name
        assert isinstance(delta, LowRank)
        kind = 1 if delta.embedding else 0
        folder.copy(f"{MODEL}{name}.{A_KEYS[kind]}", delta.lora_A, adapter.backbone)
        folder.copy(f"{MODEL}{name}.{B_KEYS[kind]}", delta.lora_B, adapter.backbone)
        if kind:  # peft saves an adapted embedding as well
            folder.require_same(f"{MODEL}{name}.base_layer.weight", placed.layer.weight, "an embedding")
