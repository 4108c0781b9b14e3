"""DoRA: Weight-Decomposed Low-Rank Adaptation (Liu et al. 2024, arXiv:2402.09353).

    h = m ⊙ (V + ΔV) x / ‖V + ΔV‖      V = W, ΔV = s · B A      (paper, eq. 5)

W (out, in) stays frozen. The magnitude m (out) trains beside A and B, which are those of LoRA and start as
LoRA's do. ‖·‖ is the norm of each output's weights, over the inputs (the paper writes W transposed, and calls it
column-wise). m starts as ‖W‖: the model starts as the backbone. The norm follows B A but passes no gradient on,
as section 4.3 of the paper advises (``detach_norm``).

B A is never formed in training; with ⊙ between entries and Σ along a row,

    ‖W + s B A‖² = ‖W‖² + 2 s · Σ (W Aᵀ) ⊙ B + s² · Σ (B A Aᵀ) ⊙ B

where ‖W‖² is computed once. W Aᵀ is computed in the dtype of W, everything else in float32.

Dropout, if there is any, acts on the input of the low-rank path alone: the paper's reading, and one base product a
layer. HF peft also drops the base's input where m / ‖V + ΔV‖ rescales it, h = W x + (m / ‖V + ΔV‖ − 1) · W x' +
(m / ‖V + ΔV‖) · ΔV x', which needs a second base product; ``dropout_mode: peft`` does the same.

Slices of fused projections have a magnitude of their own; embeddings have one entry of m for each dimension.
Departures from the paper: none.

Trainable: rank · (in + out) + out a target.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from peftlab.interop.hf_format import MODEL, HFAdapter, HFFolder, plain_float
from peftlab.interop.hf_low_rank import load_factors, lora_adapter, lora_fields
from peftlab.peft.base import Supports
from peftlab.peft.low_rank import FixedRankStrategy, LowRankLayer, LowRankUpdate, add_to_slice, attach, layers_of
from peftlab.peft.surgery import adapter_generator, weight_matrix
from peftlab.peft.weight_update import WeightUpdate, slice_name

if TYPE_CHECKING:
    from peftlab.backbones.base import Backbone

_SMALLEST_SQUARED_NORM = 1e-12
_MAGNITUDE_KEY = "lora_magnitude_vector"
"""What HF peft calls m."""


@dataclass(kw_only=True)
class DoRA(FixedRankStrategy, name="dora"):
    """Low-rank update of the weight's direction, and a trained magnitude:  h = m · (W + s·BA) x / ‖W + s·BA‖."""

    supports = Supports(mergeable=True, hf_peft="LORA")
    count = "rank · (in + out) + out a target"

    detach_norm: bool = True
    """Keep the norm out of the gradient (section 4.3 of the paper); false: the exact gradient, slower."""
    dropout_mode: Literal["low_rank", "peft"] = "low_rank"
    """Where dropout acts: on the low-rank path alone (paper), or also on the rescaled base product (HF peft)."""

    def inject(self, backbone: Backbone, *, seed: int) -> None:
        """Wrap every target in its low-rank path and magnitude."""
        for place in self.places(backbone):
            update = DoRAUpdate(
                place.in_features,
                place.out_features,
                self.rank_at(place),
                scale=self.scale_at(place),
                dropout=self.dropout,
                output_slice=place.target.output_slice,
                embedding=place.embedding,
                generator=adapter_generator(seed, place.random_stream),
                detach_norm=self.detach_norm,
                dropout_mode=self.dropout_mode,
            )
            layer = attach(backbone, place, update, DoRALayer)
            update.measure(weight_matrix(layer.base)[update.output_slice or slice(None)])

    def closed_form(self, backbone: Backbone) -> int:
        """Σ rank · (in + out) + out."""
        return sum(
            self.rank_at(place) * (place.in_features + place.out_features) + place.out_features
            for place in self.places(backbone)
        )

    def to_hf(self, backbone: Backbone) -> HFAdapter:
        """A, B and the magnitude of every layer; rows without an update keep the norm that they have."""
        adapter = lora_adapter(backbone, dropout=self.dropout, rank_stabilized=self.rank_stabilized, use_dora=True)
        for name, layer in layers_of(backbone, DoRALayer):
            magnitude = plain_float(torch.linalg.vector_norm(weight_matrix(layer.base).detach().float(), dim=1))
            for update in layer.dora_updates():
                magnitude[update.output_slice or slice(None)] = plain_float(update.magnitude)
            adapter.tensors[f"{MODEL}{name}.{_MAGNITUDE_KEY}"] = magnitude
        return adapter

    @classmethod
    def from_hf(cls, folder: HFFolder) -> dict[str, Any] | None:
        """LORA with a magnitude."""
        if folder.peft_type != "LORA" or not folder.option("use_dora", False):
            return None
        return {**lora_fields(folder), "dropout_mode": "peft"}

    def load_hf(self, backbone: Backbone, folder: HFFolder) -> None:
        """A, B and the magnitude."""
        load_factors(backbone, folder)
        for name, layer in layers_of(backbone, DoRALayer):
            for update in layer.dora_updates():
                folder.copy(f"{MODEL}{name}.{_MAGNITUDE_KEY}", update.magnitude, backbone)

    def weight_updates(self, backbone: Backbone) -> list[WeightUpdate]:
        """m · (W + s · B A) / ‖W + s · B A‖ − W of every target: the magnitude changes it beyond rank r."""
        return [
            WeightUpdate(slice_name(name, part), weight, update.change(weight))
            for name, layer in layers_of(backbone, DoRALayer)
            for part, update in zip(layer.updates, layer.dora_updates(), strict=True)
            for weight in [weight_matrix(layer.base)[update.output_slice or slice(None)]]
        ]


class DoRAUpdate(LowRankUpdate):
    """LoRA's factors, the magnitude m, and the squared norms of the frozen weight's rows."""

    weight_squares: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        *,
        detach_norm: bool,
        dropout_mode: Literal["low_rank", "peft"],
        **factors: Any,
    ) -> None:
        super().__init__(in_features, out_features, rank, **factors)
        self.detach_norm = detach_norm
        self.drops_base = dropout_mode == "peft" and isinstance(self.dropout, nn.Dropout) and not self.embedding
        self.magnitude = nn.Parameter(torch.zeros(out_features))
        # A function of the frozen weight, so neither saved nor loaded.
        self.register_buffer("weight_squares", torch.zeros(out_features), persistent=False)

    @torch.no_grad()
    def measure(self, weight: Tensor) -> None:
        """Start the magnitude as the row norms of ``weight`` (out, in)."""
        self.weight_squares.copy_(weight.float().square().sum(dim=1))
        self.magnitude.copy_(self.weight_squares.clamp_min(_SMALLEST_SQUARED_NORM).sqrt())

    def factor(self, weight: Tensor) -> Tensor:
        """m / ‖W + s · B A‖ (out,) in float32, from the frozen ``weight`` (out, in)."""
        norm = self.norm(weight)
        return self.magnitude / (norm.detach() if self.detach_norm else norm)

    @torch.no_grad()
    def change(self, weight: Tensor) -> Tensor:
        """What merging adds to ``weight`` (out, in), in float32."""
        return self.factor(weight)[:, None] * (weight.float() + self.dense()) - weight.float()

    def norm(self, weight: Tensor) -> Tensor:
        """‖W + s · B A‖ (out,), without forming B A."""
        with (
            torch.set_grad_enabled(torch.is_grad_enabled() and not self.detach_norm),
            torch.autocast(weight.device.type, enabled=False),
        ):
            cross = ((weight @ self.A.T.to(weight.dtype)).float() * self.B).sum(dim=1)  # (out,)
            squares = ((self.B @ (self.A @ self.A.T)) * self.B).sum(dim=1)  # (out,)
            total = self.weight_squares + 2 * self.scale * cross + self.scale**2 * squares
            return total.clamp_min(_SMALLEST_SQUARED_NORM).sqrt()


class DoRALayer(LowRankLayer):
    """A frozen layer whose output, or slices of it, are rescaled and updated."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        self._original: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out), or ids (…) → (…, dim)."""
        base_out: Tensor = self.base(x)
        if self.merged:
            return base_out
        weight = weight_matrix(self.base)  # (out, in)
        out = base_out
        for update in self.dora_updates():
            rows = update.output_slice or slice(None)
            factor = update.factor(weight[rows])
            if isinstance(self.base, nn.Embedding):
                product, delta = base_out, update.lookup(x)
            elif update.drops_base and self.training:
                dropped = update.dropout(x)
                product, delta = self.base(dropped), update.project(dropped.to(update.A.dtype))
            else:
                product, delta = base_out, update(x)
            product = product[..., rows].float()  # W x + b
            if self.bias is not None:
                product = product - self.bias[rows].float()
            out = add_to_slice(out, (factor - 1) * product + factor * delta, update.output_slice)
        return out

    @torch.no_grad()
    def merge(self) -> None:
        """Replace the base's weight by m · (W + s · B A) / ‖W + s · B A‖; nothing if that was done already."""
        if self.merged:
            return
        # Kept to the bit: m / ‖W + s · B A‖ may be zero, and rounding would add up over repeated merges.
        self._original = self.weight.detach().to("cpu", copy=True)
        weight = weight_matrix(self.base)
        for update in self.dora_updates():
            rows = update.output_slice or slice(None)
            factor = update.factor(weight[rows])
            weight[rows] = (factor[:, None] * (weight[rows].float() + update.dense())).to(weight.dtype)
        self.merged = True

    @torch.no_grad()
    def unmerge(self) -> None:
        """Put the very weight back that was there before; nothing if it was not merged."""
        if self._original is not None:
            self.weight.copy_(self._original)
            self._original, self.merged = None, False

    def dora_updates(self) -> list[DoRAUpdate]:
        """The updates, in the order of their slices."""
        return [update for update in self.all_updates() if isinstance(update, DoRAUpdate)]
