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

Rescaling and the low-rank product are one pass over the output forward (two with dropout) and three backward, which
keep one tensor of its size (:class:`_Rescaled`), where all is of 32 bits, or of 64. Written out as above, which other
and mixed types are, it is some ten passes and keeps two. Both are the same up to rounding.

Slices of fused projections have a magnitude of their own; embeddings have one entry of m for each dimension.
Departures from the authors' code: none.

Trainable: rank · (in + out) + out a target.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

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
        if self._one_type(x, out):
            return self._in_one_pass(x, out, base, factor)
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

    def _one_type(self, x: Tensor, out: Tensor) -> bool:
        """Whether nothing is looked up, and all is of the type in which the rescaling is computed: 32 or 64 bits."""
        same = x.dtype == out.dtype == self.lora_A.dtype in (
            torch.float32,
            torch.float64,
        ) and not torch.is_autocast_enabled(x.device.type)
        return same and not self.embedding and self.A_start is None

    def _in_one_pass(self, x: Tensor, out: Tensor, base: nn.Module, factor: Tensor) -> Tensor:
        """:meth:`forward` where :meth:`_one_type` holds."""
        rows = self.rows or slice(None)
        read, rescale = self.dropout(x), factor
        product: Tensor = out
        apart: Tensor | None = None
        if self.drops_base and self.training:
            product, apart, rescale = base(read)[..., rows], out, factor - 1
        bias = getattr(base, "bias", None)
        shift = None if bias is None else (1 - factor) * bias[rows]  # only W x is rescaled, and the products have b
        up = (self.scale * factor)[:, None] * self.lora_B
        low = F.linear(read, self.lora_A)
        changed: Tensor = _Rescaled.apply(apart, product, rescale, low, up, shift)  # type: ignore[no-untyped-call]
        return changed

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


class _Rescaled(torch.autograd.Function):
    """h = a + g ⊙ p + c + B u, and its gradients, in as few passes over tensors of the output's size as there can be.

    Args of ``apply``: a (…, out) or None, p (…, out), g (out,), u (…, r), B (out, r), c (out,) or None.
    """

    @staticmethod
    def forward(
        ctx: Any, apart: Tensor | None, product: Tensor, rescale: Tensor, low: Tensor, up: Tensor, shift: Tensor | None
    ) -> Tensor:
        """h (…, out)."""
        flat, reduced = product.reshape(-1, product.shape[-1]), low.reshape(-1, low.shape[-1])
        changed = reduced @ up.T if shift is None else torch.addmm(shift, reduced, up.T)
        changed.addcmul_(flat, rescale)
        if apart is not None:
            changed += apart.reshape(changed.shape)
        ctx.save_for_backward(flat, rescale, reduced, up)
        ctx.shape = product.shape
        return changed.view(product.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Those that are needed, in the order of the arguments."""
        product, rescale, low, up = ctx.saved_tensors
        needed = ctx.needs_input_grad
        flat = gradient.reshape(product.shape)
        room = flat * product
        of_rescale = room.sum(dim=0)
        of_product = torch.mul(flat, rescale, out=room).view(ctx.shape) if needed[1] else None
        of_low = (flat @ up).view(*ctx.shape[:-1], -1) if needed[3] else None
        of_shift = flat.sum(dim=0) if needed[5] else None
        return gradient if needed[0] else None, of_product, of_rescale, of_low, flat.T @ low, of_shift
