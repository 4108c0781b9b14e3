"""Starts of a low-rank update that are made of the frozen weight, or its gradient: A₀ and B₀ out of a factorisation.

What is frozen is the rest, W − s · B₀ A₀, and the model is unchanged at its start,

    h = (W − s · B₀ A₀) x + s · B A x

Each function returns A₀ (rank, in) and B₀ (out, rank) in float32; :meth:`peftlab.peft.low_rank.LowRank.start_from`
keeps them beside the factors that train. Sources and equations are at the head of :mod:`peftlab.peft.lora`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

Start = Callable[[Tensor, int, float], tuple[Tensor, Tensor]]


def principal_part(weight: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """PiSSA: s · B₀ A₀ is the best approximation of ``weight`` (out, in) of this ``rank``."""
    return _balanced(*_svd(weight), slice(0, rank), scale)


def minor_part(weight: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """MiLoRA: s · B₀ A₀ are the ``rank`` smallest singular values of ``weight`` (out, in), with their vectors."""
    U, S, Vh = _svd(weight)
    return _balanced(U, S, Vh, slice(len(S) - rank, len(S)), scale)


def orthonormal_part(weight: Tensor, rank: int, _scale: float) -> tuple[Tensor, Tensor]:
    """OLoRA: of ``weight`` = Q R (out, in) the first columns of Q and the first rows of R, whatever the scale."""
    Q, R = torch.linalg.qr(weight.float())
    return R[:rank], Q[:, :rank]


def gradient_start(gradient: Tensor, rank: int, gamma: float) -> tuple[Tensor, Tensor]:
    """LoRA-GA: singular vectors of the ``gradient`` (out, in) of W, scaled so that they are stable."""
    U, _, Vh = _svd(gradient)
    size = len(gradient) ** 0.25 / gamma**0.5
    return size * Vh[:rank], size * U[:, rank : 2 * rank]


def _svd(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    U, S, Vh = torch.linalg.svd(weight.float(), full_matrices=False)
    return U, S, Vh


def _balanced(U: Tensor, S: Tensor, Vh: Tensor, chosen: slice, scale: float) -> tuple[Tensor, Tensor]:
    """√(S/s) Vᵀ and U √(S/s) of the ``chosen`` singular values."""
    root = (S[chosen] / scale).sqrt()
    return root[:, None] * Vh[chosen], U[:, chosen] * root


STARTS: Mapping[str, Start] = MappingProxyType(
    {"pissa": principal_part, "milora": minor_part, "olora": orthonormal_part}
)
"""Value of ``peft.init`` → start, of those that need the weight alone."""
