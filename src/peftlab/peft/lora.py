"""LoRA: Low-Rank Adaptation of Large Language Models (Hu et al. 2021, arXiv:2106.09685).

    h = W x + s · B A x        (paper, eq. 3)        s = alpha / rank
                                                     s = alpha / √rank    rank-stabilised (arXiv:2312.03732)

W (out, in) stays frozen; A (rank, in) and B (out, rank) train. A starts from Kaiming's uniform
distribution with a = √5, as the authors' code has it (the paper says Gaussian), and B from zero: the model
starts as the backbone. For an embedding A (rank, vocabulary) starts from zero and B (dim, rank) from N(0, 1).

Trainable: rank · (in + out) a target. A role that is a slice of a fused projection (the query third of
GPT-2's ``c_attn``) is adapted on its own, with the slice's own output size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peftlab.backbones.roles import find_targets
from peftlab.errors import PeftlabError
from peftlab.fields import PositiveFloat, PositiveInt, Probability
from peftlab.peft.base import PEFTStrategy, Supports
from peftlab.peft.surgery import (
    adapter_generator,
    is_conv1d,
    is_quantized,
    linear_features,
    pattern_value,
    replace_module,
    require_patterns_used,
    slice_length,
)

if TYPE_CHECKING:
    from peftlab.backbones.base import Backbone, Target


@dataclass(kw_only=True)
class LoRA(PEFTStrategy, name="lora"):
    """Low-rank update beside frozen weights:  h = W x + (alpha / rank) · B A x."""

    supports = Supports(mergeable=True)
    count = "rank · (in + out) a target"

    rank: PositiveInt = 8
    """Rank r of the update."""
    alpha: PositiveFloat = 16.0
    """The update is scaled by alpha / rank."""
    dropout: Probability = 0.0
    """Dropout on the input of the low-rank path."""
    targets: list[str] = field(default_factory=lambda: ["query", "value"])
    """Roles, or regexes on module names. Each entry must match something."""
    rank_stabilized: bool = False
    """Scale by alpha / √rank, which keeps the update's size as the rank grows (rsLoRA)."""
    rank_pattern: dict[str, PositiveInt] | None = None
    """Role or regex → rank, for targets that need another one."""
    alpha_pattern: dict[str, PositiveFloat] | None = None
    """Role or regex → alpha, in the same way."""

    def __post_init__(self) -> None:
        """Raise ValueError for an empty list of targets."""
        if not self.targets:
            raise ValueError("peft.targets is empty: name at least one role or regex, for example [query, value].")

    def inject(self, backbone: Backbone, *, seed: int) -> None:
        """Wrap every target in its low-rank path."""
        targets = find_targets(backbone, self.targets)
        require_patterns_used("peft.rank_pattern", self.rank_pattern or {}, targets)
        require_patterns_used("peft.alpha_pattern", self.alpha_pattern or {}, targets)
        for target in targets:
            module = backbone.model.get_submodule(target.name)
            update_name = target.role if target.output_slice is not None and target.role else "all"
            if not isinstance(module, LoRALayer):
                module = LoRALayer(module)
                replace_module(backbone.model, target.name, module)
            module.updates[update_name] = self._update_for(target, module.base, seed)

    def _update_for(self, target: Target, base: nn.Module, seed: int) -> LowRankUpdate:
        rank = pattern_value(self.rank_pattern or {}, target, self.rank)
        alpha = pattern_value(self.alpha_pattern or {}, target, self.alpha)
        is_embedding = isinstance(base, nn.Embedding)
        if isinstance(base, nn.Embedding):
            in_features, out_features = base.num_embeddings, base.embedding_dim
        else:
            in_features, all_outputs = linear_features(base)
            out_features = slice_length(target, all_outputs)
        if rank > min(in_features, out_features):
            raise PeftlabError(
                f"peft.rank={rank} is above what '{target.name}' ({in_features} → {out_features}) can have: "
                f"at most {min(in_features, out_features)}. Lower it, or set it for this target in peft.rank_pattern."
            )
        update = LowRankUpdate(
            in_features,
            out_features,
            rank,
            scale=alpha / (math.sqrt(rank) if self.rank_stabilized else rank),
            dropout=self.dropout,
            output_slice=target.output_slice,
            embedding=is_embedding,
            generator=adapter_generator(seed, f"{target.name}/{target.role or ''}"),
        )
        weight = base.weight
        assert isinstance(weight, Tensor)
        return update.to(weight.device)

    def merge(self, backbone: Backbone) -> None:
        """Add s · B A to the frozen weights; the low-rank path is then skipped."""
        for name, layer in _layers(backbone):
            if is_quantized(layer.base):
                raise PeftlabError(
                    f"'{name}' keeps its weight in {backbone.provenance.get('quantize')}: adding a LoRA update "
                    "would round it to that grid again and lose most of it. "
                    "Build the backbone with backbone.quantize=null to merge."
                )
        for _, layer in _layers(backbone):
            layer.merge()

    def unmerge(self, backbone: Backbone) -> None:
        """Take s · B A away from the weights again (within rounding)."""
        for _, layer in _layers(backbone):
            layer.unmerge()


def _layers(backbone: Backbone) -> list[tuple[str, LoRALayer]]:
    return [(name, m) for name, m in backbone.model.named_modules() if isinstance(m, LoRALayer)]


class LowRankUpdate(nn.Module):
    """s · B A, for all outputs of a layer or a slice of them."""

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
    ) -> None:
        super().__init__()
        self.rank = rank
        self.scale = scale
        self.output_slice = output_slice
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        # fp32 whatever the backbone's dtype: the update is small against the rounding of 16 bits.
        A = torch.zeros(rank, in_features)
        B = torch.zeros(out_features, rank)
        if embedding:
            nn.init.normal_(B, generator=generator)
        else:
            nn.init.kaiming_uniform_(A, a=math.sqrt(5), generator=generator)
        self.A = nn.Parameter(A)  # (r, in)
        self.B = nn.Parameter(B)  # (out, r)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out) for a linear layer."""
        low = F.linear(self.dropout(x.to(self.A.dtype)), self.A)  # (…, r)
        return F.linear(low, self.B) * self.scale

    def lookup(self, ids: Tensor) -> Tensor:
        """(…) ids → (…, dim) for an embedding; dropout does not apply to ids."""
        return F.linear(F.embedding(ids, self.A.T), self.B) * self.scale

    def dense(self) -> Tensor:
        """s · B A as one matrix (out, in)."""
        return (self.B @ self.A) * self.scale

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"rank={self.rank}, scale={self.scale:g}, slice={self.output_slice}"


class LoRALayer(nn.Module):
    """A frozen layer and its low-rank updates: one for the whole output, or one a slice."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.updates = nn.ModuleDict()
        self.merged = False

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out), or ids (…) → (…, dim)."""
        out: Tensor = self.base(x)
        if self.merged:
            return out
        for update in self._updates():
            delta = update.lookup(x) if isinstance(self.base, nn.Embedding) else update(x)
            if update.output_slice is None:
                out = out + delta.to(out.dtype)
            else:
                out = out.clone()  # the base's output must not change under autograd's feet
                out[..., update.output_slice] += delta.to(out.dtype)
        return out

    def merge(self) -> None:
        """Add the updates to the base's weight; nothing if that was done already."""
        if not self.merged:
            self._add(+1.0)
            self.merged = True

    def unmerge(self) -> None:
        """Undo :meth:`merge`; nothing if it was not done."""
        if self.merged:
            self._add(-1.0)
            self.merged = False

    @torch.no_grad()
    def _add(self, sign: float) -> None:
        weight = self.weight
        for update in self._updates():
            dense = sign * update.dense()  # (out, in); an embedding's weight is (vocabulary, dim)
            rows = update.output_slice or slice(None)
            if isinstance(self.base, nn.Embedding) or is_conv1d(self.base):
                weight[:, rows] += dense.T.to(weight.dtype)
            else:
                weight[rows] += dense.to(weight.dtype)

    def _updates(self) -> list[LowRankUpdate]:
        return list(self.updates.values())  # type: ignore[arg-type]

    @property
    def weight(self) -> Tensor:
        """The frozen weight: some models look at its dtype."""
        weight = self.base.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias."""
        bias = getattr(self.base, "bias", None)
        assert bias is None or isinstance(bias, Tensor)
        return bias
