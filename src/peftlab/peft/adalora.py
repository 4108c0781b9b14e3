"""AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning (Zhang et al. 2023, arXiv:2303.10512).

    h = W x + s · P Λ Q x        (eq. 3)        s = alpha / initial_rank

W (out, in) stays frozen; P (out, r), the diagonal Λ (r) and Q (r, in) train. Λ starts from zero, P and Q from
N(0, 0.02²): the model starts as the backbone. A term of the loss keeps P and Q near orthogonal, so that
Λ can be read as singular values (eq. 4, and as HF peft averages it over the 2 n matrices of n targets):

    γ · mean of ‖PᵀP − I‖_F and ‖Q Qᵀ − I‖_F

The importance of a weight θ is its sensitivity, smoothed, times its uncertainty (eqs. 8 to 11):

    I = |θ · ∂L/∂θ|        Ī ← β₁ Ī + (1 − β₁) I        Ū ← β₂ Ū + (1 − β₂) |I − Ī|        s(θ) = Ī · Ū

and that of the triplet (column i of P, λ_i, row i of Q) is s(λ_i) + mean s(P_·i) + mean s(Q_i·) (eq. 7). The triplets
of the lowest importance lose their λ (:mod:`peftlab.peft.rank_budget`). With T optimizer steps, t_i =
warmup_fraction · T and t_f = final_fraction · T, the budget of step t for n targets is (eq. 12)

    b(t) = n · initial_rank                                      t ≤ t_i
    b(t) = n · [rank + (initial_rank − rank) · (1 − u)³]         t_i < t ≤ T − t_f
    b(t) = n · rank                                              then

with u = (t − t_i) / (T − t_f − t_i).

P, Λ and Q are called lora_B, diagonal and lora_A here, as in the other methods. As in the authors' code θ is taken
after the optimizer step, with the gradient from before it. Steps whose gradients are not finite, which a loss scaler
skips, are not observed. Departures: the phases are shares of the run's steps; ties are broken by order, so that
the budget is met to the component. Embeddings can be adapted too (rows of Q are then looked up).

Trainable: initial_rank · (in + out + 1) a target. Pruned triplets keep their places; on average ``rank`` of a target's
triplets act at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from peftlab.fields import NonNegativeFloat, Probability
from peftlab.peft.adapter import Adapter
from peftlab.peft.base import Supports
from peftlab.peft.rank_budget import Prunable, RankBudgetStrategy, allocate, components_kept, prunable

if TYPE_CHECKING:
    from peftlab.backbones.base import Target

_FACTORS = {"A": "lora_A", "diagonal": "diagonal", "B": "lora_B"}
"""What a statistic is called after → the parameter that it is of."""


@dataclass(kw_only=True)
class AdaLoRA(RankBudgetStrategy, name="adalora"):
    """Low-rank updates P Λ Q whose ranks are moved to where they matter:  h = W x + s · P Λ Q x."""

    supports = Supports(mergeable=True, hf_peft="ADALORA")
    count = "initial rank · (in + out + 1) a target"

    beta1: Probability = 0.85
    """Smoothing of the sensitivity."""
    beta2: Probability = 0.85
    """Smoothing of the uncertainty."""
    orthogonality: NonNegativeFloat = 0.5
    """Weight γ of the term that keeps P and Q orthogonal."""

    def new_delta(self, target: Target, generator: torch.Generator, **common: Any) -> SVDDelta:
        """P Λ Q for one target."""
        return SVDDelta(target, self.initial_rank, generator=generator, **common)

    def observe(self, delta: Prunable) -> None:
        """Smooth the sensitivity and uncertainty of every weight of ``delta``."""
        assert isinstance(delta, SVDDelta)
        delta.observe(self.beta1, self.beta2)

    def regularization(self, adapter: Adapter, step: int, total: int) -> Tensor | None:
        """γ · the mean distance of P and Q from orthogonality."""
        if self.orthogonality == 0:
            return None
        deltas = [delta for delta in prunable(adapter) if isinstance(delta, SVDDelta)]
        distances = [distance for delta in deltas for distance in delta.distances_from_orthogonal()]
        return self.orthogonality * torch.stack(distances).mean()

    def phases(self, total_steps: int) -> tuple[int, int]:
        """Last step of the warmup, and the step of the last allocation (which is before the last step of all)."""
        final = max(1, round(self.final_fraction * total_steps))
        return round(self.warmup_fraction * total_steps), max(0, total_steps - final)

    def budget(self, step: int, total_steps: int, places: int) -> int:
        """Components that ``places`` targets may keep at ``step``."""
        start, end = places * self.initial_rank, places * self.rank
        warm, last = self.phases(total_steps)
        if step >= last:
            return end
        if step <= warm:
            return start
        return int(end + (start - end) * (1 - (step - warm) / (last - warm)) ** 3)

    def on_step(self, adapter: Adapter, step: int, total: int) -> None:
        """Observe, and prune when it is time to; a first step of 0 or of 1 ends with the same budget."""
        deltas = prunable(adapter)
        warm, last = self.phases(total)
        budget = self.budget(step, total, len(deltas))
        if step < last:
            for delta in deltas:
                self.observe(delta)
            if step > warm and step % self.interval == 0:
                allocate(deltas, budget)
        elif step == last or components_kept(deltas) > budget:
            allocate(deltas, budget)
            for delta in deltas:
                assert isinstance(delta, SVDDelta)
                delta.forget()
        else:
            for delta in deltas:
                delta.prune()


class SVDDelta(Prunable):
    """s · P Λ Q with the running importance of every weight in it."""

    def __init__(self, target: Target, rank: int, *, generator: torch.Generator, **common: Any) -> None:
        super().__init__(target, rank, diagonal=0.0, generator=generator, **common)
        for factor in (self.lora_A, self.lora_B):
            nn.init.normal_(factor, std=0.02, generator=generator)
        for name, parameter in _FACTORS.items():
            weight = self.get_parameter(parameter)
            self.register_buffer(f"sensitivity_{name}", torch.zeros_like(weight))
            self.register_buffer(f"uncertainty_{name}", torch.zeros_like(weight))

    @torch.no_grad()
    def observe(self, beta1: float, beta2: float) -> None:
        """Take the present weights and gradients into the smoothed sensitivity and uncertainty."""
        for name, parameter in _FACTORS.items():
            weight = self.get_parameter(parameter)
            if weight.grad is None:
                continue
            now = (weight * weight.grad).abs()
            finite = now.isfinite().all()
            sensitivity, uncertainty = self._statistics(name)
            smooth = beta1 * sensitivity + (1 - beta1) * now
            unsure = beta2 * uncertainty + (1 - beta2) * (now - smooth).abs()
            sensitivity.copy_(torch.where(finite, smooth, sensitivity))
            uncertainty.copy_(torch.where(finite, unsure, uncertainty))

    def scores(self) -> Tensor:
        """Importance of each triplet (r,)."""
        A, diagonal, B = (sensitivity * uncertainty for sensitivity, uncertainty in map(self._statistics, _FACTORS))
        return diagonal + A.mean(dim=1) + B.mean(dim=0)

    def forget(self) -> None:
        """Set sensitivity and uncertainty to zero."""
        for name in _FACTORS:
            for statistic in self._statistics(name):
                statistic.zero_()

    def distances_from_orthogonal(self) -> tuple[Tensor, Tensor]:
        """‖PᵀP − I‖_F and ‖Q Qᵀ − I‖_F, in float32."""
        Q, P = self.lora_A, self.lora_B
        with torch.autocast(P.device.type, enabled=False):
            eye = torch.eye(self.rank, device=P.device)
            return torch.linalg.norm(P.T @ P - eye), torch.linalg.norm(Q @ Q.T - eye)

    def _statistics(self, name: str) -> tuple[Tensor, Tensor]:
        return self.get_buffer(f"sensitivity_{name}"), self.get_buffer(f"uncertainty_{name}")
