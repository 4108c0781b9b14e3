"""DoRA: Enhancing Parameter-Efficient Fine-Tuning with Dynamic Rank Distribution (Mao et al. 2024, arXiv:2405.17357).

Not :mod:`peftlab.peft.dora`, another method of the same short name.

    h = W x + s · Σ_i c_i · B_i A_i x        s = alpha / initial_rank

W (out, in) stays frozen. A low-rank update is taken as a sum of rank-1 components: B_i a column of B (out, r), A_i a
row of A (r, in), c_i a number; all three train. The importance of a component is its share of its own update,
smoothed over the steps:

    s_i = ‖c_i B_i A_i‖_F / ‖Σ_j c_j B_j A_j‖_F        ŝ_i ← β ŝ_i + (1 − β) s_i

Norms of rank-1 matrices are products of vector norms, and that of the sum comes from r × r Gram matrices: no gradient
statistics, nothing of size (out, in). c starts from zero and A and B from Kaiming's uniform distribution, so that the
model starts as the backbone and every component has a direction.

With T optimizer steps, t_i = warmup_fraction · T and t_f = final_fraction · T, a target keeps on average

    b(t) = r₀ − (r₀ − rank) · p³        p = (t − t_i) / (T − t_i − t_f), from 0 to 1        r₀ = initial_rank

components: few are pruned at first, most late. Every ``interval`` steps from t_i on, and at T − t_f for the last time,
the components of the lowest ŝ_i among all targets, at least one, have their c_i set to zero. Up to then they may train
back; from then on they stay zero. Up to then a term of the loss, the dimensional equilibrium modulator, punishes
components that live in a few entries only:

    η / (2 n r₀) · Σ over the components of all n targets of Var(A_i) + Var(B_i)

with the sample variance over the entries of each vector; it is zero afterwards.

Schedule, score, term, start and defaults are those of the authors' code (github.com/MIkumikumi0116/DoRA), in whose
whole numbers of steps the phases are counted. Departures: of equal scores the first component is kept, where the
authors prune all of them; the last allocation meets the budget to the component whatever rounding does, and prunes none
where initial_rank is rank. Embeddings can be adapted too (rows of A are then looked up); their A starts as that of a
layer with one input. c is called diagonal in the saved tensors.

Trainable: initial_rank · (in + out + 1) a target. Pruned components keep their places; on average ``rank`` of a
target's components act at the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from peftlab.fields import NonNegativeFloat, PositiveFloat, PositiveInt, Probability
from peftlab.peft.adapter import Adapter
from peftlab.peft.base import Supports
from peftlab.peft.rank_budget import Prunable, RankBudgetStrategy, allocate, components_kept, prunable

if TYPE_CHECKING:
    from peftlab.backbones.base import Target

EPS = 1e-8
"""Added to the norm of the whole update, which is zero at the start."""


@dataclass(kw_only=True)
class DynamicDoRA(RankBudgetStrategy, name="dynamic_dora"):
    """Sum of rank-1 updates, pruned by their share of the whole:  h = W x + s · Σ c_i B_i A_i x."""

    supports = Supports(mergeable=True, hf_peft="LORA")
    count = "initial rank · (in + out + 1) a target"

    alpha: PositiveFloat = 8.0
    """The update is scaled by alpha / initial_rank."""
    dropout: Probability = 0.1
    """Dropout on the input of the low-rank path."""
    warmup_fraction: Probability = 0.15
    """Share of the run's steps before the first component is pruned."""
    interval: PositiveInt = 100
    """Optimizer steps between two allocations of the budget."""
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
        """η · the mean variance of all components' vectors; nothing once the choice stands."""
        now, last = self.pruning_step(step, total)
        if self.equilibrium == 0 or now > last:
            return None
        deltas = [delta for delta in prunable(adapter) if isinstance(delta, ComponentsDelta)]
        return self.equilibrium * torch.cat([delta.variances() for delta in deltas]).mean() / 2

    def pruning_step(self, step: int, total_steps: int) -> tuple[int, int]:
        """Steps since the warmup's end (negative before it), and how many there are up to the last allocation."""
        now = int(step - total_steps * self.warmup_fraction)
        return now, int(total_steps * (1 - self.warmup_fraction - self.final_fraction))

    def budget(self, step: int, total_steps: int, places: int) -> int:
        """Components that ``places`` targets may keep at ``step``."""
        now, last = self.pruning_step(step, total_steps)
        start, end = places * self.initial_rank, places * self.rank
        if now >= last:
            return end
        share = (self.initial_rank - self.rank) / self.initial_rank * (max(now, 0) / last) ** 3
        return start - int(start * share)

    def on_step(self, adapter: Adapter, step: int, total: int) -> None:
        """Observe, and prune when it is time to."""
        deltas = prunable(adapter)
        now, last = self.pruning_step(step, total)
        budget = self.budget(step, total, len(deltas))
        if now <= last:
            for delta in deltas:
                self.observe(delta)
            if now == last or (now >= 0 and now % self.interval == 0):
                prunes = self.initial_rank > self.rank  # then one at least
                allocate(deltas, min(budget, len(deltas) * self.initial_rank - prunes))
        elif components_kept(deltas) > budget:  # the caller counts its steps otherwise
            allocate(deltas, budget)
        else:
            for delta in deltas:
                delta.prune()


class ComponentsDelta(Prunable):
    """s · Σ c_i B_i A_i with the running importance of every component."""

    importance: Tensor

    def __init__(self, target: Target, rank: int, *, generator: torch.Generator, **common: Any) -> None:
        super().__init__(target, rank, diagonal=0.0, generator=generator, **common)
        fan_in = 1 if self.embedding else self.lora_A.shape[1]
        for factor, inputs in ((self.lora_A, fan_in), (self.lora_B, rank)):
            bound = math.sqrt(6 / inputs)  # Kaiming's for a gain of √2
            nn.init.uniform_(factor, -bound, bound, generator=generator)
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
        return own / (whole + EPS)

    def scores(self) -> Tensor:
        """The smoothed shares (r,)."""
        return self.importance

    def variances(self) -> Tensor:
        """Var(A_i) + Var(B_i) over the entries of each component's vectors (r,)."""
        return _variance(self.lora_A, dim=1) + _variance(self.lora_B, dim=0)


def _variance(of: Tensor, dim: int) -> Tensor:
    """The sample variance along ``dim``; a single entry has none."""
    return of.var(dim=dim, correction=min(1, of.shape[dim] - 1))
