"""Adapters that do something: what trains gets random values."""

from __future__ import annotations

import torch

from peftlab.backbones.base import Backbone


def randomised(backbone: Backbone, seed: int = 5) -> Backbone:
    """``backbone`` with every trainable tensor drawn from N(0, 0.3²)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3, generator=generator)
    return backbone
