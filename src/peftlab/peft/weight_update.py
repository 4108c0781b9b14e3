"""What a method changed of one weight matrix: ΔW, as a matrix or as the factors it is made of.

This is what ``peftlab inspect`` measures. Nothing here is a method.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class WeightUpdate:
    """ΔW of one layer, or of a slice of its output; for an embedding out is its width, in the vocabulary."""

    name: str
    """Qualified name of the layer inside the model; a slice's role follows in brackets."""
    weight: Tensor
    """W before training (out, in)."""
    update: Tensor | tuple[Tensor, Tensor]
    """ΔW (out, in), or two matrices (out, k) and (k, in) whose product it is."""

    @torch.no_grad()
    def svd(self) -> tuple[Tensor, Tensor, Tensor]:
        """U (out, n), the singular values (n) and Vᵀ (n, in) of ΔW, in float64.

        Of factors they are taken without the product, and exactly: with left = Q₁ R₁ and rightᵀ = Q₂ R₂,
        ΔW = Q₁ (R₁ R₂ᵀ) Q₂ᵀ, and only the small matrix in the middle is decomposed.
        """
        if isinstance(self.update, Tensor):
            U, S, Vh = torch.linalg.svd(self.update.detach().double(), full_matrices=False)
            return U, S, Vh
        left, right = (factor.detach().double() for factor in self.update)
        Q1, R1 = torch.linalg.qr(left)
        Q2, R2 = torch.linalg.qr(right.T)
        U, S, Vh = torch.linalg.svd(R1 @ R2.T, full_matrices=False)
        return Q1 @ U, S, Vh @ Q2.T


def slice_name(layer: str, part: str) -> str:
    """Name of the update of ``part`` of a layer, which is ``all`` for the whole of it."""
    return layer if part == "all" else f"{layer} ({part})"
