"""Tiny random backbones of every kind, built in milliseconds."""

from __future__ import annotations

import torch

from peftlab.backbones.base import Backbone
from peftlab.backbones.transformer import TransformerConfig

ARCHITECTURES: dict[str, dict[str, object]] = {
    "bert": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
    "roberta": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "llama": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
    },
}


def tiny(kind: str, *, labels: int = 3, seed: int = 0, **fields: object) -> Backbone:
    """A random backbone of ``kind``, in evaluation mode."""
    architecture = {"model_type": kind, "vocab_size": 300, **ARCHITECTURES[kind]}
    config = TransformerConfig(architecture=architecture, dropout=0.0, **fields)  # type: ignore[arg-type]
    return config.build(labels, seed=seed).eval()


def batch(rows: int = 4, length: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Random ids and a mask with padding on the right, none in the first row."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(5, 250, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(1, rows):
        mask[row, length - row :] = 0
    return ids, mask
