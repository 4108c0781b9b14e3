"""VeRA: Vector-based Random Matrix Adaptation (Kopiczko, Blankevoort & Asano 2023, arXiv:2310.11454).

    h = W x + Λ_b B Λ_d A x        (paper, eq. 2)

A (rank, in) and B (out, rank) are random, frozen and the same for all layers; the vectors d (rank) and b (out),
the diagonals of Λ_d and Λ_b, train. A and B come from Kaiming's uniform distribution, d starts from
``d_initial`` and b from zero: the model starts as the backbone.

Departures: layers of other shapes use the leading rows and columns of the largest A and B (as HF peft does; the
paper has one shape). The adapter file holds A and B once, where the paper keeps their seed alone: an adapter
must not change with a library's random generator.

Trainable: rank + out a target. RoBERTa-base, rank 1024 on query and value: 43,008. A role that is a slice of a
fused projection is adapted on its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peftlab.backbones.roles import find_targets
from peftlab.fields import FiniteFloat, NonNegativeInt, PositiveInt, Probability
from peftlab.peft.adapter import Adapter
from peftlab.peft.base import PEFTStrategy, Selection, Supports, Usual
from peftlab.peft.delta import Delta
from peftlab.peft.surgery import adapter_generator, require_linear, target_features

if TYPE_CHECKING:
    from peftlab.backbones.base import Backbone

PROJECTION = "vera_projection"
"""The model's child that holds A and B."""


@dataclass(kw_only=True)
class VeRA(PEFTStrategy, name="vera"):
    """Learned vectors around shared random matrices:  h = W x + Λ_b B Λ_d A x."""

    supports = Supports(mergeable=True, hf_peft="VERA")
    count = "rank + out a target"
    usual: ClassVar[Usual] = {"": {"targets": ("query", "value")}, "text_classifier": {"targets": ("hidden",)}}

    rank: PositiveInt = 256
    """Rank r of the shared matrices; it may exceed the layers' width."""
    targets: list[str] | None = None
    """Roles, or regexes on module names, each of which must match something; null: what is usual for the backbone,
    query and value of a transformer, the hidden layer of the text classifier."""
    dropout: Probability = 0.0
    """Dropout on the input of the adapter's path."""
    d_initial: FiniteFloat = 0.1
    """Start of the vector d; zero would leave nothing to learn from."""
    projection_seed: NonNegativeInt | None = None
    """Seed of the shared matrices; null: the run's seed."""

    def __post_init__(self) -> None:
        """Raise ValueError for settings under which nothing could train."""
        if self.targets is not None and not self.targets:
            raise ValueError("peft.targets is empty: name at least one role or regex, for example [query, value].")
        if self.d_initial == 0:
            raise ValueError("peft.d_initial=0 gives no gradient, as b starts from zero too. Choose another, e.g. 0.1.")

    def select(self, backbone: Backbone) -> Selection:
        """The targets, and the place for the shared matrices."""
        targets = find_targets(backbone, self.places("targets", backbone.architecture))
        require_linear(targets)
        return Selection(backbone, targets=targets, slots=[PROJECTION])

    def build(self, selection: Selection, *, seed: int, batches: Any = None) -> Adapter:
        """Make the shared matrices, and put vectors on every target."""
        adapter = Adapter(self, selection.backbone)
        shapes = [target_features(target) for target in selection.targets]
        projection = RandomProjection(
            max(in_features for in_features, _ in shapes),
            max(out_features for _, out_features in shapes),
            self.rank,
            adapter_generator(seed if self.projection_seed is None else self.projection_seed, PROJECTION),
        )
        weight = selection.targets[0].module.weight
        assert isinstance(weight, Tensor)
        adapter.add(PROJECTION, projection.to(weight.device))
        for target, (in_features, out_features) in zip(selection.targets, shapes, strict=True):
            adapter.put(target, VeRADelta(projection, in_features, out_features, self.d_initial, self.dropout))
        return adapter

    def closed_form(self, backbone: Backbone) -> int:
        """Rank + out a target."""
        return sum(self.rank + target_features(target)[1] for target in self.select(backbone).targets)


class RandomProjection(nn.Module):
    """A and B, frozen and shared by all layers; it stands once, at the top of the model."""

    A: Tensor
    B: Tensor

    def __init__(self, in_features: int, out_features: int, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        # Buffers: they never train, and papers do not count them.
        A, B = torch.empty(rank, in_features), torch.empty(out_features, rank)
        self.register_buffer("A", nn.init.kaiming_uniform_(A, generator=generator))  # (r, largest in)
        self.register_buffer("B", nn.init.kaiming_uniform_(B, generator=generator))  # (largest out, r)


class VeRADelta(Delta):
    """h = W x + Λ_b B Λ_d A x, for all outputs of a layer, or a slice of them."""

    def __init__(
        self, projection: RandomProjection, in_features: int, out_features: int, d_initial: float, dropout: float
    ) -> None:
        super().__init__()
        self._shared = (projection,)  # in a tuple, so that it is no submodule and is saved once
        self.in_features, self.out_features = in_features, out_features
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.d = nn.Parameter(torch.full((projection.A.shape[0],), d_initial))  # (r,)
        self.b = nn.Parameter(torch.zeros(out_features))  # (out,)

    def _matrices(self) -> tuple[Tensor, Tensor]:
        """A (r, in) and B (out, r) in this layer's size."""
        (projection,) = self._shared
        return projection.A[:, : self.in_features], projection.B[: self.out_features]

    def forward(self, x: Tensor, out: Tensor, base: nn.Module) -> Tensor:
        """``out`` (…, out) and the update of it."""
        A, B = self._matrices()
        low = F.linear(self.dropout(x.to(self.d.dtype)), A) * self.d  # (…, r)
        return out + (F.linear(low, B) * self.b).to(out.dtype)

    def folded(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """W + Λ_b B Λ_d A."""
        left, right = self.update(weight)
        return weight + (left @ right).to(weight.dtype), bias

    def update(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Λ_b B (out, r) and Λ_d A (r, in)."""
        A, B = self._matrices()
        return self.b.unsqueeze(1) * B, self.d.unsqueeze(1) * A

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"rank={len(self.d)}, rows={self.rows}"
