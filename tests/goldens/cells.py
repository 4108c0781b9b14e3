"""What every method has trained after a few steps on every kind of backbone, kept in cells.json.gz.

The cells of :mod:`tests.conformance.cells` that are not refused, each method with its defaults, and some variants.
:func:`trained_state` is all that knows how a method is put into a model and trained.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from peftlab.errors import PeftlabError
from peftlab.peft.base import attach
from peftlab.seeding import derive_seed
from tests.conformance.cells import LABELS, TEXTS, WEIGHTS, Make, _ids, known_methods, untouched
from tests.goldens.machine import machine

CELLS = Path(__file__).with_name("cells.json.gz")

STEPS = 5
LEARNING_RATE = 0.005
MOMENTUM = 0.9
"""SGD, as AdamW makes full steps of the rounding noise of a gradient that is zero by mathematics."""

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora bias=all": ("lora", {"bias": "all"}),
    "lora bias=lora_only": ("lora", {"bias": "lora_only"}),
    "lora freeze_A": ("lora", {"freeze_A": True}),
    "lora init=pissa": ("lora", {"init": "pissa"}),
    "lora init=orthogonal": ("lora", {"init": "orthogonal"}),
    "lora lr_ratio=16": ("lora", {"lr_ratio": 16.0}),
    "lora rank_pattern": (
        "lora",
        {"targets": ["query", "ffn_up"], "rank_pattern": {"ffn_up": 2}, "alpha_pattern": {"query": 4.0}},
    ),
    "lora dropout": ("lora", {"dropout": 0.1}),
    "lora embedding": ("lora", {"targets": ["query", "embedding"]}),
    "lora embedding lr_ratio": ("lora", {"targets": ["query", "embedding"], "lr_ratio": 4.0}),
    "dora dropout_mode=peft": ("dora", {"dropout": 0.1, "dropout_mode": "peft"}),
    "vera rank=16": ("vera", {"rank": 16, "projection_seed": 5, "targets": ["query", "value", "ffn_up"]}),
    "ia3 in both lists": ("ia3", {"targets": ["key", "ffn_down"], "feedforward_targets": ["ffn_down"]}),
    "parallel_adapter learned_scale": ("parallel_adapter", {"learned_scale": True}),
    "parallel_adapter ffn, attention": ("parallel_adapter", {"targets": ["ffn", "attention"]}),
    "parallel_adapter roles": ("parallel_adapter", {"targets": ["query", "ffn_up"]}),
    "p_tuning lstm": ("p_tuning", {"encoder": "lstm"}),
    "prefix_tuning position_shift": ("prefix_tuning", {"position_shift": True, "length": 6}),
    "prefix_tuning reparameterize=false": ("prefix_tuning", {"reparameterize": False}),
    "compose lora, bitfit": ("compose", {"methods": ["lora", "bitfit"]}),
    "compose vera, layernorm": ("compose", {"methods": ["vera", "layernorm"]}),
    "compose prefix_tuning, parallel_adapter": ("compose", {"methods": ["prefix_tuning", "parallel_adapter"]}),
    "compose adalora, bitfit": ("compose", {"methods": ["adalora", "bitfit"]}),
    "compose prompt_tuning, lora": ("compose", {"methods": ["prompt_tuning", "lora"]}),
    "hf_peft LOHA": ("hf_peft", {"peft_type": "LOHA", "options": {"r": 4, "target_modules": "all-linear"}}),
}
"""Beyond the defaults: what it is called, method, fields."""

KINDS = ("bert", "distilbert", "roberta", "deberta-v2", "modernbert", "gpt2", "llama")
"""Those that the matrix had when the cells were kept."""
VARIANT_KINDS = ("bert", "gpt2", "llama")


@dataclass(frozen=True)
class Trained:
    """What one cell has come to."""

    tensors: dict[str, Tensor]
    """What the adapter file would hold, by name; the head too."""
    groups: list[tuple[float, list[list[int]]]]
    """Of the optimizer: each group's learning rate, and the shapes of its parameters in their order."""


def trained_state(make: Make, kind: str, weights: str) -> Trained:
    """Train a method on a backbone for a few steps: all contact with the protocol of methods is here.

    Raises:
        PeftlabError: if the method refuses the backbone.
    """
    torch.set_num_threads(1)
    backbone = untouched(kind, weights)
    adapter = attach(backbone, make(), seed=0)
    groups = adapter.param_groups(LEARNING_RATE)
    shapes = [(group["lr"], [list(parameter.shape) for parameter in group["params"]]) for group in groups]
    optimizer = torch.optim.SGD(groups, momentum=MOMENTUM)
    for step in range(STEPS):
        torch.manual_seed(derive_seed(0, "dropout", step))
        optimizer.zero_grad()
        backbone.train()
        loss = F.cross_entropy(backbone(*_ids(kind, step % len(TEXTS))).float(), LABELS)
        penalty = adapter.regularization(step + 1, STEPS)
        (loss if penalty is None else loss + penalty).backward()
        optimizer.step()
        adapter.on_step(step + 1, STEPS)
    return Trained(adapter.state_dict(), shapes)


def all_cells() -> Iterator[tuple[str, str, Make, str, str]]:
    """Name, method, how to make it, kind and weights of every cell, refused ones among them."""
    known = known_methods()
    for method, cls in known.items():
        for kind in KINDS:
            for weights in WEIGHTS:
                yield f"{method} on {kind}, {weights}", method, cls, kind, weights
    for name, (method, fields) in VARIANTS.items():
        for kind in VARIANT_KINDS:
            yield f"{name} on {kind}, fp32", method, functools.partial(known[method], **fields), kind, "fp32"


# -- a tensor in a few figures -------------------------------------------------------------------------


def digest(tensor: Tensor) -> list[Any]:
    """Type, shape, sha256 of the bytes, norm, and the products with two vectors that its size decides."""
    values = tensor.detach().cpu().contiguous()
    if values.is_floating_point():
        values = values + 0.0  # -0.0 and 0.0 are the same number
    data = hashlib.sha256(values.flatten().view(torch.uint8).numpy().tobytes()).hexdigest() if values.numel() else ""
    return [str(values.dtype).removeprefix("torch."), list(values.shape), data, *figures(values)]


def figures(tensor: Tensor) -> list[float]:
    """Norm and two products in float64."""
    flat = tensor.flatten().double().numpy()
    return [float(np.linalg.norm(flat)), *(float(flat @ vector) for vector in _vectors(flat.size))]


@functools.lru_cache(maxsize=64)
def _vectors(size: int) -> np.ndarray[Any, Any]:
    return np.random.Generator(np.random.PCG64(size)).standard_normal((2, size))


def largest_difference(digested: list[Any], golden: list[Any]) -> float:
    """Of norm and products, relative to the larger of 1 and the golden's norm."""
    scale = max(1.0, golden[3])
    return max(abs(one - other) / scale for one, other in zip(digested[3:], golden[3:], strict=True))


# -- the file ------------------------------------------------------------------------------------------


def read() -> dict[str, Any]:
    """The goldens."""
    content: dict[str, Any] = json.loads(gzip.decompress(CELLS.read_bytes()))
    return content


def make() -> None:
    """Write cells.json.gz."""
    torch.set_num_threads(1)
    cells: dict[str, Any] = {}
    for name, method, make_it, kind, weights in all_cells():
        try:
            trained = trained_state(make_it, kind, weights)
        except PeftlabError as error:
            print(f"{name}: refused ({str(error)[:80]})")
            continue
        tensors = {tensor_name: digest(tensor) for tensor_name, tensor in sorted(trained.tensors.items())}
        assert all(np.isfinite(one[3:]).all() for one in tensors.values()), f"{name} has diverged"
        cells[name] = {"method": method, "tensors": tensors, "groups": trained.groups}
    text = json.dumps({"machine": machine(), "cells": cells}, separators=(",", ":"))
    CELLS.write_bytes(gzip.compress(text.encode(), mtime=0))
    count = sum(len(cell["tensors"]) for cell in cells.values())
    print(f"{CELLS}: {len(cells)} cells, {count} tensors, {CELLS.stat().st_size:,} bytes")
