"""Random backbones of every architecture the role table knows, and of others, each built in milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from peftlab.backbones.base import Backbone
from peftlab.backbones.transformer import TransformerConfig
from peftlab.backbones.transformer_backbone import TransformerBackbone

_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 300,
    "max_position_embeddings": 64,
}
_GROUPED = _SIZES | {"num_key_value_heads": 2}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "albert": _SIZES | {"embedding_size": 16},
    "bert": _SIZES,
    "big_bird": _SIZES,
    "deberta": _SIZES,
    # As microsoft/deberta-v3-base: positions relative to each other only.
    "deberta-v2": _SIZES | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False},
    "distilbert": {
        "dim": 32,
        "n_layers": 2,
        "n_heads": 4,
        "hidden_dim": 64,
        "vocab_size": 300,
        "max_position_embeddings": 64,
    },
    "electra": _SIZES | {"embedding_size": 16},
    "gemma": _GROUPED | {"head_dim": 8},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 300},
    "gpt_neox": _SIZES,
    "llama": _GROUPED,
    "mistral": _GROUPED,
    "modernbert": _SIZES,
    "phi3": _GROUPED,
    "qwen2": _GROUPED,
    "qwen3": _GROUPED | {"head_dim": 8},
    "roberta": _SIZES,
    "t5": {"d_model": 32, "num_layers": 2, "num_heads": 4, "d_ff": 64, "d_kv": 8, "vocab_size": 300},
    "xlm-roberta": _SIZES,
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64, "vocab_size": 300},
}


def tiny_config(model_type: str, **more: Any) -> TransformerConfig:
    attention = "eager" if model_type.startswith(("big_bird", "deberta", "xlnet")) else "sdpa"
    architecture = {"model_type": model_type, **ARCHITECTURES[model_type]}
    return TransformerConfig(**{"architecture": architecture, "attention": attention, **more})


def tiny(model_type: str, num_labels: int = 3, *, seed: int = 0, **more: Any) -> TransformerBackbone:
    return tiny_config(model_type, **more).build(num_labels, seed=seed).eval()


def batch(backbone: Backbone, texts: Sequence[str], max_length: int = 48) -> tuple[Tensor, Tensor]:
    rows = backbone.tokenizer.encode(texts, max_length)
    width = max(map(len, rows))
    ids = [row + [backbone.tokenizer.pad_id] * (width - len(row)) for row in rows]
    return torch.tensor(ids), torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])


def shake(backbone: Backbone, scale: float = 0.1) -> None:
    """Random weights are so small that a tiny model's logits hardly depend on the text; enlarge them."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in backbone.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
