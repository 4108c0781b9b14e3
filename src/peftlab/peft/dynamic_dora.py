"""DoRA: Enhancing Parameter-Efficient Fine-Tuning with Dynamic Rank Distribution (Mao et al. 2024, arXiv:2405.17357).

Not :mod:`peftlab.peft.dora`, another method of the same short name.

    h = W x + s · Σ_i c_i · B_i A_i x        s = alpha / initial_rank

W (out, in) stays frozen. A low-rank update is taken as a sum of rank-1 components: B_i a column of B (out, r), A_i a
row of A (r, in), c_i a number; all three train. The importance of a component is its share of its own update,
smoothed over the steps:

    s_i = ‖c_i B_i A_i‖_F / ‖Σ_j c_j B_j A_j‖_F        ŝ_i ← β ŝ_i + (1 − β) s_i

Norms of rank-1 matrices are products of vector norms, and that of the sum comes from r × r Gram matrices: no gradient
statistics, nothing of size (out, in). The components of the lowest ŝ_i among all targets have their c_i set to zero by
the schedule of :mod:`peftlab.peft.rank_budget`. A term of the loss, the dimensional equilibrium modulator, punishes
components that live in a few entries only:

    η · mean over the kept components of Var(A_i) + Var(B_i)

with the variance over the entries of each vector.

Departures, and what the paper leaves open or was not to hand: A starts as LoRA's, B from zero and c from one,
so that the model starts as the backbone; the update is scaled by alpha / initial_rank; the phases are shares of
the run's steps; a pruned c_i keeps its gradient until the last allocation; while an update is all zero its shares
are zero. The default η was chosen here. c is called diagonal in the saved tensors.

Trainable: initial_rank · (in + out + 1) a target. Pruned components keep their places; on average ``rank`` of a
target's components act at the end.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from peftlab.fields import NonNegativeFloat, Probability
from peftlab.peft.adapter import Adapter
from peftlab.peft.base import Supports
from peftlab.peft.rank_budget import Prunable, RankBudgetStrategy, prunable

if TYPE_CHECKING:
    from peftlab.backbones.base import Target


@dataclass(kw_only=True)
class DynamicDoRA(RankBudgetStrategy, name="dynamic_dora"):
    """Sum of rank-1 updates, pruned by their share of the whole:  h = W x + s · Σ c_i B_i A_i x."""

    supports = Supports(mergeable=True, hf_peft="LORA")
    count = "initial rank · (in + out + 1) a target"

    targets: list[str] = field(
        default_factory=lambda: ["query", "key", "value", "attention_output", "ffn_up", "ffn_down"]
    )
    """Roles, or regexes on module names; the budget is shared between them. Each entry must match something."""
    beta: Probability = 0.9
    """Smoothing of the importance."""
    equilibrium: NonNegativeFloat = 0.1
    """Weight η of the term that punishes a high variance of the entries of A_i and B_i."""

    def new_delta(self, target: Target, generator: torch.Generator, **common: Any) -> ComponentsDelta:
        """Σ c_i B_i A_i for one target."""
        return ComponentsDelta(target, self.initial_rank, generator=generator, **common)

    def observe(self, delta: Prunable) -> None:
        """Smooth the shares of the components of ``delta``."""
        assert isinstance(delta, ComponentsDelta)
        delta.observe(self.beta)

    def regularization(self, adapter: Adapter, step: int, total: int) -> Tensor | None:
        """η · the mean variance of the kept components' vectors."""
        if self.equilibrium == 0:
            return None
        deltas = [delta for delta in prunable(adapter) if isinstance(delta, ComponentsDelta)]
        kept = torch.cat([delta.kept for delta in deltas]).float()
        variances = torch.cat([delta.variances() for delta in deltas])
        return self.equilibrium * (variances * kept).sum() / kept.sum()


class ComponentsDelta(Prunable):
    """s · Σ c_i B_i A_i with the running importance of every component."""

    importance: Tensor

    def __init__(self, target: Target, rank: int, **common: Any) -> None:
        super().__init__(target, rank, diagonal=1.0, **common)
        self.register_buffer("importance", torch.zeros(rank))

    @torch.no_grad()
    def observe(self, beta: float) -> None:
        """Take the present shares into the smoothed ones."""
        self.importance.copy_(beta * self.importance + (1 - beta) * self.shares())

    def shares(self) -> Tensor:
        """‖c_i B_i A_i‖_F / ‖Σ_j c_j B_j A_j‖_F (r,), without forming a matrix of the weight's size."""
        B = self.lora_B * self.diagonal  # (out, r)
        own: Tensor = torch.linalg.vector_norm(B, dim=0) * torch.linalg.vector_norm(self.lora_A, dim=1)  # (r,)
        whole: Tensor = ((B.T @ B) * (self.lora_A @ self.lora_A.T)).sum().clamp_min(0).sqrt()
        return own / whole.clamp_min(torch.finfo(whole.dtype).tiny)

    def scores(self) -> Tensor:
        """The smoothed shares (r,)."""
        return self.importance

    def forget(self) -> None:
        """Set the smoothed shares to zero."""
        self.importance.zero_()

    def variances(self) -> Tensor:
        """Var(A_i) + Var(B_i) over the entries of each component's vectors (r,)."""
        return self.lora_A.var(dim=1, correction=0) + self.lora_B.var(dim=0, correction=0)
