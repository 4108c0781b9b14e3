"""Weights that two environments can make alike: a function of a tensor's name and shape, by numpy alone."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

KINDS: dict[str, dict[str, Any]] = {
    kind: {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "vocab_size": 60,
        "max_position_embeddings": 32,
        "num_labels": 3,
    }
    for kind in ("bert", "roberta", "electra", "deberta-v2")
} | {
    "distilbert": {
        "dim": 16,
        "n_layers": 2,
        "n_heads": 2,
        "hidden_dim": 32,
        "vocab_size": 60,
        "max_position_embeddings": 32,
        "num_labels": 3,
    }
}
"""Architecture → what its config is given."""

WIDTH = 4
"""Of the bottlenecks; the library floors its quotient by the reduction factor."""

ADAPTERS: dict[str, dict[str, Any]] = {
    "mad_x": {"original_ln_before": True, "mh_adapter": False},
    "projection": {"original_ln_before": False, "mh_adapter": False},
    "houlsby": {"original_ln_before": False, "mh_adapter": True},
}
"""What is compared → the fields of the library's ``BnConfig`` that say so."""

ACTIVATIONS = ("relu", "gelu")

IDS = [[2, 14, 35, 7, 51, 9, 22, 3], [2, 40, 11, 3, 0, 0, 0, 0]]
MASK = [[1] * 8, [1] * 4 + [0] * 4]


def filled(name: str, shape: Sequence[int]) -> np.ndarray:
    """The values of the tensor ``name``; scales of normalisation layers are near 1."""
    draw = np.random.default_rng(zlib.crc32(name.encode())).normal(size=tuple(shape)) * 0.3
    return draw + 1 if "norm" in name.lower() and name.endswith("weight") else draw
