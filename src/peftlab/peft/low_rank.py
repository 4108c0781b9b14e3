"""What LoRA and its relatives share: the low-rank update of one place, and the fields that say its size.

Nothing here is a method: the methods are :mod:`lora`, :mod:`dora`, :mod:`adalora` and :mod:`dynamic_dora`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peftlab.backbones.roles import find_targets
from peftlab.errors import PeftlabError
from peftlab.fields import PositiveFloat, PositiveInt, Probability
from peftlab.peft.base import PEFTStrategy, Selection, Usual
from peftlab.peft.delta import Delta
from peftlab.peft.surgery import pattern_value, require_patterns_used, target_features

if TYPE_CHECKING:
    from peftlab.backbones.base import Backbone, Target


@dataclass(kw_only=True)
class LowRankStrategy(PEFTStrategy):
    """Base of the methods that put low-rank updates beside frozen layers."""

    usual: ClassVar[Usual] = {"": {"targets": ("query", "value")}, "text_classifier": {"targets": ("hidden",)}}

    alpha: PositiveFloat = 16.0
    """The update is scaled by alpha / rank."""
    dropout: Probability = 0.0
    """Dropout on the input of the low-rank path."""
    targets: list[str] | None = None
    """Roles, or regexes on module names, each of which must match something; null: what is usual for the backbone,
    query and value of a transformer, the hidden layer of the text classifier."""

    def __post_init__(self) -> None:
        """Raise ValueError for an empty list of targets."""
        if self.targets is not None and not self.targets:
            raise ValueError("peft.targets is empty: name at least one role or regex, for example [query, value].")

    def select(self, backbone: Backbone) -> Selection:
        """The targets: linear layers, embeddings, slices of fused projections."""
        return Selection(backbone, targets=find_targets(backbone, self.places("targets", backbone.architecture)))

    @abstractmethod
    def closed_form(self, backbone: Backbone) -> int:
        """Trainable parameters without the head."""


@dataclass(kw_only=True)
class FixedRankStrategy(LowRankStrategy):
    """Low-rank updates whose ranks the config says."""

    rank: PositiveInt = 8
    """Rank r of the update."""
    rank_stabilized: bool = False
    """Scale by alpha / √rank, which keeps the update's size as the rank grows (rsLoRA)."""
    rank_pattern: dict[str, PositiveInt] | None = None
    """Role or regex → rank, for targets that need another one."""
    alpha_pattern: dict[str, PositiveFloat] | None = None
    """Role or regex → alpha, for targets that need another one."""

    def select(self, backbone: Backbone) -> Selection:
        """As always; raises PeftlabError for a pattern without effect or a rank that cannot be."""
        selection = super().select(backbone)
        require_patterns_used("peft.rank_pattern", self.rank_pattern or {}, selection.targets)
        require_patterns_used("peft.alpha_pattern", self.alpha_pattern or {}, selection.targets)
        for target in selection.targets:
            require_rank(target, self.rank_at(target), "rank")
        return selection

    def rank_at(self, target: Target) -> int:
        """Rank of the update at ``target``."""
        return pattern_value(self.rank_pattern or {}, target, self.rank)

    def scale_at(self, target: Target) -> float:
        """Factor s of the update at ``target``."""
        rank = self.rank_at(target)
        alpha = pattern_value(self.alpha_pattern or {}, target, self.alpha)
        return alpha / (math.sqrt(rank) if self.rank_stabilized else rank)


def require_rank(target: Target, rank: int, key: str) -> None:
    """Raise PeftlabError, naming the field ``key``, if a matrix of ``target`` cannot have ``rank``."""
    in_features, out_features = target_features(target)
    largest = min(in_features, out_features)
    if rank > largest:
        raise PeftlabError(
            f"peft.{key}={rank} is above what '{target.name}' ({in_features} → {out_features}) can have: at most "
            f"{largest}. Lower it" + (", or set it for this target in peft.rank_pattern." if key == "rank" else ".")
        )


class LowRank(Delta):
    """h = W x + s · B A x, for all outputs of a layer or a slice of them; of an embedding A is looked up."""

    A_start: Tensor | None
    B_start: Tensor | None

    def __init__(
        self,
        target: Target,
        rank: int,
        *,
        scale: float,
        dropout: float,
        generator: torch.Generator,
        init: Literal["kaiming", "gaussian", "orthogonal"] = "kaiming",
    ) -> None:
        super().__init__()
        in_features, out_features = target_features(target)
        self.rank = rank
        self.scale = scale
        self.embedding = isinstance(target.module, nn.Embedding)
        self.padding_idx = target.module.padding_idx if isinstance(target.module, nn.Embedding) else None
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        # fp32 whatever the backbone's dtype: the update is small against the rounding of 16 bits.
        A = torch.zeros(rank, in_features)
        B = torch.zeros(out_features, rank)
        if init == "orthogonal":
            nn.init.orthogonal_(B if self.embedding else A, generator=generator)
        elif self.embedding:
            nn.init.normal_(B, generator=generator)
        elif init == "gaussian":
            nn.init.normal_(A, std=1 / rank, generator=generator)
        else:
            nn.init.kaiming_uniform_(A, a=math.sqrt(5), generator=generator)
        self.lora_A = nn.Parameter(A)  # (r, in)
        self.lora_B = nn.Parameter(B)  # (out, r)
        self.register_buffer("A_start", None)
        self.register_buffer("B_start", None)

    @torch.no_grad()
    def start_from(self, start: tuple[Tensor, Tensor] | None) -> None:
        """Let A (r, in) and B (out, r) start as ``start``, and subtract s · B A of that start ever after.

        None: there are only shapes ("meta"), or what is loaded will bring it; until then it is zero.
        """
        A, B = (torch.zeros_like(self.lora_A), torch.zeros_like(self.lora_B)) if start is None else start
        self.lora_A.copy_(A)
        self.lora_B.copy_(B)
        self.A_start = self.lora_A.detach().clone()
        self.B_start = self.lora_B.detach().clone()

    def forward(self, x: Tensor, out: Tensor, base: nn.Module) -> Tensor:
        """``out`` (…, out) and the update of it."""
        return out + self.low_rank(x).to(out.dtype)

    def low_rank(self, x: Tensor) -> Tensor:
        """s · B A x, (…, in) → (…, out), or ids (…) → (…, dim); dropout does not apply to ids."""
        if self.embedding:
            update = self.expand(F.embedding(x, self.lora_A.T, self.padding_idx))
        else:
            update = self.project(self.dropout(self._float(x)))
        if self.A_start is not None and self.B_start is not None:
            start = F.embedding(x, self.A_start.T) if self.embedding else F.linear(self._float(x), self.A_start)
            update = update - F.linear(start, self.B_start) * self.scale
        return update

    def _float(self, x: Tensor) -> Tensor:
        """``x`` in the type of the factors; left alone where autocast would only turn it back, and keep both."""
        device = x.device.type
        turned_back = torch.is_autocast_enabled(device) and x.dtype == torch.get_autocast_dtype(device)
        return x if turned_back and not isinstance(self.dropout, nn.Dropout) else x.to(self.lora_A.dtype)

    def project(self, x: Tensor) -> Tensor:
        """s · B A x without dropout, (…, in) → (…, out)."""
        return self.expand(F.linear(x, self.lora_A))

    def expand(self, low: Tensor) -> Tensor:
        """The way up, (…, r) → (…, out).

        A scale that is a power of two rounds nothing wherever it stands, but for float16, whose smallest numbers lose
        bits: then it stands where there is least of it.
        """
        if math.frexp(self.scale)[0] == 0.5 and low.dtype != torch.float16:
            return F.linear(low * self.scale, self.lora_B)
        return F.linear(low, self.lora_B) * self.scale

    def folded(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """W + s · B A."""
        return weight + self.dense().to(weight.dtype), bias

    def dense(self) -> Tensor:
        """s · B A as one matrix (out, in)."""
        update = (self.lora_B @ self.lora_A) * self.scale
        if self.A_start is not None and self.B_start is not None:
            update = update - (self.B_start @ self.A_start) * self.scale
        return update

    def update(self, weight: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """s · B (out, k) and A (k, in)."""
        A, B = self.factors()
        return B * self.scale, A

    def factors(self) -> tuple[Tensor, Tensor]:
        """(k, in) and (out, k), whose product times the scale is :meth:`dense`; k is the rank, or twice it."""
        if self.A_start is not None and self.B_start is not None:
            return torch.cat([self.lora_A, self.A_start]), torch.cat([self.lora_B, -self.B_start], dim=1)
        return self.lora_A, self.lora_B

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"rank={self.rank}, scale={self.scale:g}, rows={self.rows}"
