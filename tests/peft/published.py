"""Architectures of the papers' tables, built on ``meta``: shapes without weights."""

from __future__ import annotations

from typing import Any

from peftlab.backbones.transformer import TransformerConfig
from peftlab.backbones.transformer_backbone import TransformerBackbone
from peftlab.peft.base import PEFTStrategy, attach
from peftlab.runs.counted import count_parameters

_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
_ROBERTA = {"model_type": "roberta", "vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}
SHAPES: dict[str, dict[str, Any]] = {
    "bert-base": {"model_type": "bert"},
    "bert-large": {"model_type": "bert"} | _LARGE,
    "roberta-base": _ROBERTA,
    "roberta-large": _ROBERTA | _LARGE,
    "gpt2-medium": {"model_type": "gpt2", "n_embd": 1024, "n_layer": 24, "n_head": 16},
    "gpt2-large": {"model_type": "gpt2", "n_embd": 1280, "n_layer": 36, "n_head": 20},
    "llama-7b": {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
                 "num_attention_heads": 32},
    "t0-11b": {"model_type": "t5", "d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_heads": 64, "num_layers": 24,
               "num_decoder_layers": 24, "feed_forward_proj": "gated-gelu"},
}  # fmt: skip


def meta(name: str) -> TransformerBackbone:
    """The architecture ``name`` with two classes and no weights."""
    return TransformerConfig(architecture=SHAPES[name]).build(2, seed=0, device="meta")


def trainable(strategy: PEFTStrategy, name: str) -> int:
    """Parameters that really train without the head; the closed form must say the same."""
    backbone = meta(name)
    expected = strategy.closed_form(backbone)
    counted = count_parameters(attach(backbone, strategy, seed=0))["trainable_without_head"]
    assert counted == expected
    return counted
