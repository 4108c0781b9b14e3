"""What LoRA and its relatives share: the low-rank update, the layer that carries updates, and their places.

Nothing here is a method: the methods are :mod:`lora`, :mod:`dora`, :mod:`adalora` and :mod:`dynamic_dora`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peftlab.backbones.base import Target
from peftlab.backbones.roles import find_targets
from peftlab.errors import PeftlabError
from peftlab.fields import PositiveFloat, PositiveInt, Probability
from peftlab.peft.base import PEFTStrategy
from peftlab.peft.surgery import (
    linear_features,
    pattern_value,
    replace_module,
    require_float,
    require_patterns_used,
    slice_length,
    weight_matrix,
)
from peftlab.peft.weight_update import WeightUpdate, slice_name
from peftlab.peft.wrapping import WrappedLayer

if TYPE_CHECKING:
    from peftlab.backbones.base import Backbone

L = TypeVar("L", bound="LowRankLayer")


@dataclass(frozen=True)
class Place:
    """One place that gets a low-rank update: a linear layer, an embedding, or a slice of a layer's output."""

    target: Target
    in_features: int
    """Inputs of the layer; for an embedding the vocabulary."""
    out_features: int
    """Outputs of the layer or slice; for an embedding its width."""

    @property
    def embedding(self) -> bool:
        """Whether ids go in, and not vectors."""
        return isinstance(self.target.module, nn.Embedding)

    @property
    def update_name(self) -> str:
        """Name of the update inside its layer: the role of a slice, else ``all``."""
        target = self.target
        return target.role if target.output_slice is not None and target.role else "all"

    @property
    def random_stream(self) -> str:
        """Name of the generator that the update starts from."""
        return f"{self.target.name}/{self.target.role or ''}"

    def require_rank(self, rank: int, key: str) -> None:
        """Raise PeftlabError, naming the field ``key``, if a matrix of this place cannot have ``rank``."""
        largest = min(self.in_features, self.out_features)
        if rank > largest:
            raise PeftlabError(
                f"peft.{key}={rank} is above what '{self.target.name}' ({self.in_features} → {self.out_features}) can "
                f"have: at most {largest}. Lower it"
                + (", or set it for this target in peft.rank_pattern." if key == "rank" else ".")
            )


@dataclass(kw_only=True)
class LowRankStrategy(PEFTStrategy):
    """Base of the methods that put low-rank updates beside frozen layers."""

    alpha: PositiveFloat = 16.0
    """The update is scaled by alpha / rank."""
    dropout: Probability = 0.0
    """Dropout on the input of the low-rank path."""
    targets: list[str] = field(default_factory=lambda: ["query", "value"])
    """Roles, or regexes on module names. Each entry must match something."""

    def __post_init__(self) -> None:
        """Raise ValueError for an empty list of targets."""
        if not self.targets:
            raise ValueError("peft.targets is empty: name at least one role or regex, for example [query, value].")

    def places(self, backbone: Backbone) -> list[Place]:
        """Where the updates go, with shapes; of a backbone that nothing was injected into."""
        found = []
        for target in find_targets(backbone, self.targets):
            module = target.module
            if isinstance(module, nn.Embedding):
                found.append(Place(target, module.num_embeddings, module.embedding_dim))
            else:
                in_features, out_features = linear_features(module)
                found.append(Place(target, in_features, slice_length(target, out_features)))
        return found

    @abstractmethod
    def closed_form(self, backbone: Backbone) -> int:
        """Trainable parameters without the head."""

    def adapter_tensors(self, module: nn.Module) -> dict[str, Tensor]:
        """Everything trainable, and what else the updates keep (:meth:`LowRankUpdate.further_state`)."""
        tensors = super().adapter_tensors(module)
        for name, update in module.named_modules():
            if isinstance(update, LowRankUpdate):
                tensors |= {f"{name}.{inner}": tensor for inner, tensor in update.further_state().items()}
        return tensors

    def merge(self, backbone: Backbone) -> None:
        """Fold the updates into the frozen weights; the low-rank paths are then skipped."""
        layers = layers_of(backbone, LowRankLayer)
        users: dict[int, list[str]] = {}
        for name, module in backbone.model.named_modules():
            for parameter in module.parameters(recurse=False):
                users.setdefault(id(parameter), []).append(name)
        for name, layer in layers:
            require_float(name, layer.base)
            others = [user for user in users[id(layer.weight)] if user != f"{name}.base"]
            if others:
                raise PeftlabError(
                    f"'{name}' shares its weight with '{others[0]}', which a merged update would change as well. "
                    "Use this adapter unmerged, or leave it out of peft.targets."
                )
        for _, layer in layers:
            layer.merge()

    def unmerge(self, backbone: Backbone) -> None:
        """Take the updates out of the weights again."""
        for _, layer in layers_of(backbone, LowRankLayer):
            layer.unmerge()

    def weight_updates(self, backbone: Backbone) -> list[WeightUpdate]:
        """The factors of every update."""
        return [
            WeightUpdate(
                slice_name(name, part),
                weight_matrix(layer.base)[update.output_slice or slice(None)],
                (B * update.scale, A),
            )
            for name, layer in layers_of(backbone, LowRankLayer)
            for part, update in zip(layer.updates, layer.all_updates(), strict=True)
            for A, B in [update.factors()]
        ]


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
    """Role or regex → alpha, in the same way."""

    def places(self, backbone: Backbone) -> list[Place]:
        """As always; raises PeftlabError for a pattern without effect or a rank that cannot be."""
        places = super().places(backbone)
        targets = [place.target for place in places]
        require_patterns_used("peft.rank_pattern", self.rank_pattern or {}, targets)
        require_patterns_used("peft.alpha_pattern", self.alpha_pattern or {}, targets)
        for place in places:
            place.require_rank(self.rank_at(place), "rank")
        return places

    def rank_at(self, place: Place) -> int:
        """Rank of the update at ``place``."""
        return pattern_value(self.rank_pattern or {}, place.target, self.rank)

    def scale_at(self, place: Place) -> float:
        """Factor s of the update at ``place``."""
        rank = self.rank_at(place)
        alpha = pattern_value(self.alpha_pattern or {}, place.target, self.alpha)
        return alpha / (math.sqrt(rank) if self.rank_stabilized else rank)


class LowRankUpdate(nn.Module):
    """s · B A, for all outputs of a layer or a slice of them."""

    A_start: Tensor | None
    B_start: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        *,
        scale: float,
        dropout: float,
        output_slice: slice | None,
        embedding: bool,
        generator: torch.Generator,
        init: Literal["kaiming", "gaussian", "orthogonal"] = "kaiming",
    ) -> None:
        super().__init__()
        self.rank = rank
        self.scale = scale
        self.output_slice = output_slice
        self.embedding = embedding
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        # fp32 whatever the backbone's dtype: the update is small against the rounding of 16 bits.
        A = torch.zeros(rank, in_features)
        B = torch.zeros(out_features, rank)
        if init == "orthogonal":
            nn.init.orthogonal_(B if embedding else A, generator=generator)
        elif embedding:
            nn.init.normal_(B, generator=generator)
        elif init == "gaussian":
            nn.init.normal_(A, std=1 / rank, generator=generator)
        else:
            nn.init.kaiming_uniform_(A, a=math.sqrt(5), generator=generator)
        self.A = nn.Parameter(A)  # (r, in)
        self.B = nn.Parameter(B)  # (out, r)
        self.register_buffer("A_start", None, persistent=False)
        self.register_buffer("B_start", None, persistent=False)

    @torch.no_grad()
    def start_from_principal_part(self, weight: Tensor) -> None:
        """Let s · B A be the best approximation of ``weight`` (out, in), and subtract that start ever after."""
        self.A_start = torch.empty_like(self.A)
        self.B_start = torch.empty_like(self.B)
        if weight.device.type == "meta":  # shapes only
            return
        U, S, Vh = torch.linalg.svd(weight.float(), full_matrices=False)
        root = (S[: self.rank] / self.scale).sqrt()
        self.A.copy_(root[:, None] * Vh[: self.rank])
        self.B.copy_(U[:, : self.rank] * root)
        self.A_start.copy_(self.A)
        self.B_start.copy_(self.B)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out) for a linear layer."""
        x = x.to(self.A.dtype)
        update = self.project(self.dropout(x))
        if self.A_start is not None and self.B_start is not None:
            update = update - F.linear(F.linear(x, self.A_start), self.B_start) * self.scale
        return update

    def project(self, x: Tensor) -> Tensor:
        """s · B A x without dropout, (…, in) → (…, out)."""
        return self.expand(F.linear(x, self.A))

    def expand(self, low: Tensor) -> Tensor:
        """The way up, (…, r) → (…, out)."""
        return F.linear(low, self.B) * self.scale

    def lookup(self, ids: Tensor) -> Tensor:
        """(…) ids → (…, dim) for an embedding; dropout does not apply to ids."""
        update = self.expand(F.embedding(ids, self.A.T))
        if self.A_start is not None and self.B_start is not None:
            update = update - F.linear(F.embedding(ids, self.A_start.T), self.B_start) * self.scale
        return update

    def dense(self) -> Tensor:
        """What is added to the weight, as one matrix (out, in)."""
        update = (self.B @ self.A) * self.scale
        if self.A_start is not None and self.B_start is not None:
            update = update - (self.B_start @ self.A_start) * self.scale
        return update

    def factors(self) -> tuple[Tensor, Tensor]:
        """(k, in) and (out, k), whose product times the scale is :meth:`dense`; k is the rank, or twice it."""
        if self.A_start is not None and self.B_start is not None:
            return torch.cat([self.A, self.A_start]), torch.cat([self.B, -self.B_start], dim=1)
        return self.A, self.B

    def further_state(self) -> dict[str, Tensor]:
        """Tensors beside the trainable ones that a reloaded update needs."""
        state: dict[str, Tensor] = {} if self.A.requires_grad else {"A": self.A}
        if self.A_start is not None and self.B_start is not None:
            state |= {"A_start": self.A_start, "B_start": self.B_start}
        return state

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"rank={self.rank}, scale={self.scale:g}, slice={self.output_slice}"


class LowRankLayer(WrappedLayer):
    """A frozen layer and its low-rank updates: one for the whole output, or one a slice."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        self.updates = nn.ModuleDict()
        self.merged = False

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out), or ids (…) → (…, dim)."""
        out: Tensor = self.base(x)
        if self.merged:
            return out
        for update in self.all_updates():
            delta = update.lookup(x) if isinstance(self.base, nn.Embedding) else update(x)
            out = add_to_slice(out, delta, update.output_slice)
        return out

    def merge(self) -> None:
        """Fold the updates into the base's weight; nothing if that was done already."""
        if not self.merged:
            self._add(+1.0)
            self.merged = True

    def unmerge(self) -> None:
        """Undo :meth:`merge` (within rounding); nothing if it was not done."""
        if self.merged:
            self._add(-1.0)
            self.merged = False

    @torch.no_grad()
    def _add(self, sign: float) -> None:
        weight = weight_matrix(self.base)  # (out, in)
        for update in self.all_updates():
            rows = update.output_slice or slice(None)
            weight[rows] += (sign * update.dense()).to(weight.dtype)

    def all_updates(self) -> list[LowRankUpdate]:
        """The updates, in the order of their slices."""
        return list(self.updates.values())  # type: ignore[arg-type]


def add_to_slice(out: Tensor, delta: Tensor, rows: slice | None) -> Tensor:
    """``out`` (…, out) plus ``delta``, which is for all of it or for ``rows`` of its last dimension."""
    if rows is None:
        return out + delta.to(out.dtype)
    out = out.clone()  # the base's output must not change under autograd's feet
    out[..., rows] += delta.to(out.dtype)
    return out


def attach(backbone: Backbone, place: Place, update: LowRankUpdate, layer_class: type[L]) -> L:
    """Put ``update`` at ``place``, on the device of the frozen weight; return the layer that carries it."""
    layer = backbone.model.get_submodule(place.target.name)
    if not isinstance(layer, layer_class):
        layer = layer_class(layer)
        replace_module(backbone.model, place.target.name, layer)
    layer.updates[place.update_name] = update.to(layer.weight.device)
    layer.train(layer.base.training)
    return layer


def layers_of(backbone: Backbone, layer_class: type[L]) -> list[tuple[str, L]]:
    """Name and layer of everything in the model that is a ``layer_class``."""
    return [(name, module) for name, module in backbone.model.named_modules() if isinstance(module, layer_class)]
