"""DoRA: Weight-Decomposed Low-Rank Adaptation (Liu et al. 2024, arXiv:2402.09353).

    h = m ⊙ (V + ΔV) x / ‖V + ΔV‖      V = W, ΔV = s · B A      (paper, eq. 5)

W (out, in) stays frozen. The magnitude m (out) trains beside A and B, which are those of LoRA and start as
LoRA's do. ‖·‖ is the norm of each output's weights, over the inputs (the paper writes W transposed, and calls it
column-wise). m starts as ‖W‖: the model starts as the backbone. The norm follows B A but passes no gradient on,
as section 4.3 of the paper advises (``detach_norm``).

B A is never formed in training; with ⊙ between entries and Σ along a row,

    ‖W + s B A‖² = ‖W‖² + 2 s · Σ (W Aᵀ) ⊙ B + s² · Σ (B A Aᵀ) ⊙ B

where ‖W‖² is computed once. W Aᵀ is computed in the dtype of W, everything else in float32.

With dropout, x' is the dropped input of the low-rank path, and of the base product where m / ‖V + ΔV‖ rescales it:

    h = W x + (m / ‖V + ΔV‖ − 1) · W x' + (m / ‖V + ΔV‖) · ΔV x'

as the authors' code has it (github.com/NVlabs/DoRA) and HF peft. It needs a second base product; ``dropout_mode:
low_rank``, a choice of ours, drops on the low-rank path alone and needs one. The paper does not say. Without dropout
there is one rule, and the mode is written down as ``low_rank``.

Slices of fused projections have a magnitude of their own; embeddings have one entry of m for each dimension.
Departures from the authors' code: none.

Trainable: rank · (in + out) + out a target.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from peftlab.backbones.floats import at_least_single
from peftlab.peft.adapter import Adapter
from peftlab.peft.base import Selection, Supports
from peftlab.peft.low_rank import FixedRankStrategy, LowRank
from peftlab.peft.surgery import adapter_generator, random_stream, target_features, weight_matrix

if TYPE_CHECKING:
    from peftlab.backbones.base import Backbone, Target

_SMALLEST_SQUARED_NORM = 1e-12


@dataclass(kw_only=True)
class DoRA(FixedRankStrategy, name="dora"):
    """Low-rank update of the weight's direction, and a trained magnitude:  h = m · (W + s·BA) x / ‖W + s·BA‖."""

    supports = Supports(mergeable=True, hf_peft="LORA")
    count = "rank · (in + out) + out a target"

    detach_norm: bool = True
    """Keep the norm out of the gradient (section 4.3 of the paper); false: the exact gradient, slower."""
    dropout_mode: Literal["low_rank", "peft"] = "peft"
    """Where dropout acts: also on the rescaled base product (authors' code, HF peft), or on the low-rank path alone."""

    def __post_init__(self) -> None:
        """As always; without dropout the mode decides nothing, and must not tell two equal runs apart."""
        super().__post_init__()
        if self.dropout == 0:
            self.dropout_mode = "low_rank"

    def build(self, selection: Selection, *, seed: int, batches: Any = None) -> Adapter:
        """Put a low-rank path and a magnitude on every target."""
        adapter = Adapter(self, selection.backbone)
        for target in selection.targets:
            delta = DoRADelta(
                target,
                self.rank_at(target),
                scale=self.scale_at(target),
                dropout=self.dropout,
                generator=adapter_generator(seed, random_stream(target)),
                detach_norm=self.detach_norm,
                dropout_mode=self.dropout_mode,
            )
            layer = adapter.put(target, delta)
            delta.measure(weight_matrix(layer.base)[delta.rows or slice(None)])
        return adapter

    def closed_form(self, backbone: Backbone) -> int:
        """Σ rank · (in + out) + out."""
        targets = self.select(backbone).targets
        shapes = [(self.rank_at(target), *target_features(target)) for target in targets]
        return sum(rank * (inputs + out) + out for rank, inputs, out in shapes)


class DoRADelta(LowRank):
    """LoRA's factors, the magnitude m, and the squared norms of the frozen weight's rows."""

    weight_squares: Tensor

    def __init__(
        self,
        target: Target,
        rank: int,
        *,
        detach_norm: bool,
        dropout_mode: Literal["low_rank", "peft"],
        **factors: Any,
    ) -> None:
        super().__init__(target, rank, **factors)
        self.detach_norm = detach_norm
        self.drops_base = dropout_mode == "peft" and isinstance(self.dropout, nn.Dropout) and not self.embedding
        self.magnitude = nn.Parameter(torch.zeros(len(self.lora_B)))  # (out,)
        # A function of the frozen weight, so neither saved nor loaded.
        self.register_buffer("weight_squares", torch.zeros(len(self.lora_B)), persistent=False)

    @torch.no_grad()
    def measure(self, weight: Tensor) -> None:
        """Start the magnitude as the row norms of ``weight`` (out, in)."""
        self.weight_squares.copy_(at_least_single(weight).square().sum(dim=1))
        self.magnitude.copy_(self.weight_squares.clamp_min(_SMALLEST_SQUARED_NORM).sqrt())

    def forward(self, x: Tensor, out: Tensor, base: nn.Module) -> Tensor:
        """m ⊙ (W x + s · B A x) / ‖W + s · B A‖ + b, from ``out`` = W x + b (…, out)."""
        rows = self.rows or slice(None)
        factor = self.factor(weight_matrix(base)[rows])
        if self.drops_base and self.training:
            dropped = self.dropout(x)
            product, delta = base(dropped)[..., rows], self.project(self._float(dropped))
        else:
            product, delta = out, self.low_rank(x)
        product = at_least_single(product)  # W x + b
        bias = getattr(base, "bias", None)
        if bias is not None:
            product = product - at_least_single(bias[rows])
        change: Tensor = (factor - 1) * product + factor * delta
        return out + change.to(out.dtype)

    def factor(self, weight: Tensor) -> Tensor:
        """m / ‖W + s · B A‖ (out,) in float32, from the frozen ``weight`` (out, in)."""
        norm = self.norm(weight)
        return self.magnitude / (norm.detach() if self.detach_norm else norm)

    def norm(self, weight: Tensor) -> Tensor:
        """‖W + s · B A‖ (out,), without forming B A."""
        A, B = self.lora_A, self.lora_B
        with (
            torch.set_grad_enabled(torch.is_grad_enabled() and not self.detach_norm),
            torch.autocast(weight.device.type, enabled=False),
        ):
            cross = (at_least_single(weight @ A.T.to(weight.dtype)) * B).sum(dim=1)  # (out,)
            squares = ((B @ (A @ A.T)) * B).sum(dim=1)  # (out,)
            total = self.weight_squares + 2 * self.scale * cross + self.scale**2 * squares
            return total.clamp_min(_SMALLEST_SQUARED_NORM).sqrt()

    def folded(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """m · (W + s · B A) / ‖W + s · B A‖, in float32."""
        return self.factor(weight)[:, None] * (at_least_single(weight) + self.dense()), bias

    @torch.no_grad()
    def update(self, weight: Tensor) -> Tensor:
        """The folded weight − W: the magnitude changes it beyond rank r."""
        return self.folded(weight, None)[0] - at_least_single(weight)
