"""The tiny backbones that methods are tested on, and a batch of random ids for them."""

from __future__ import annotations

import torch

from tests.backbones.tiny_backbones import tiny

KINDS = ("bert", "roberta", "distilbert", "gpt2", "llama")

__all__ = ["KINDS", "batch", "tiny"]


def batch(rows: int = 4, length: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Random ids and a mask with padding on the right, none in the first row."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(5, 250, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(1, rows):
        mask[row, length - row :] = 0
    return ids, mask
