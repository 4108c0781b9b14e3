"""What AdaLoRA and dynamic-rank DoRA share: updates made of rank-1 components, and a budget of components that shrinks.

    ΔW = s · B diag(d) A        one component is (B's column i, d_i, A's row i)

All targets start with ``initial_rank`` components and share one budget, which ends at ``rank`` a target on average. How
it shrinks in between, each method says (its ``budget``). Every ``interval`` steps the components of the highest scores
are kept and d_i of the others is set to zero; up to the last allocation a component that trains back can be kept
again. From there on the choice stands, and the pruned d_i are set to zero after every step. All of it happens in
``on_step``: a run needs no further call. Statistics and choice are saved, so a resumed run goes on to the bit.

``trainer.select=best`` chooses among the epochs that end within the budget; an adapter from before the last allocation
would hold more components. Of a run that was stopped before, the best epoch of all is taken.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from peftlab.fields import Fraction, PositiveFloat, PositiveInt, Probability
from peftlab.peft.adapter import Adapter
from peftlab.peft.base import Selection, Usual
from peftlab.peft.low_rank import LowRank, LowRankStrategy, require_rank
from peftlab.peft.surgery import adapter_generator, random_stream, target_features

if TYPE_CHECKING:
    from peftlab.backbones.base import Backbone, Target


@dataclass(kw_only=True)
class RankBudgetStrategy(LowRankStrategy):
    """Base of the methods that prune the components of their updates to a budget."""

    usual: ClassVar[Usual] = {
        "": {"targets": ("query", "key", "value", "attention_output", "ffn_up", "ffn_down")},
        "text_classifier": {"targets": ("hidden",)},
    }

    targets: list[str] | None = None
    """Roles, or regexes on module names, each of which must match something; the budget is shared between them. null:
    what is usual for the backbone, all linear layers of a transformer's blocks, the hidden layer of the text
    classifier."""
    rank: PositiveInt = 8
    """Components a target keeps at the end, on average."""
    initial_rank: PositiveInt = 12
    """Components every target starts with."""
    alpha: PositiveFloat = 16.0
    """The update is scaled by alpha / initial_rank."""
    warmup_fraction: Probability = 0.1
    """Share of the run's steps before the first component is pruned."""
    final_fraction: Fraction = 0.5
    """Share of the run's steps, at its end, that train what was kept."""
    interval: PositiveInt = 10
    """Optimizer steps between two allocations of the budget."""

    def __post_init__(self) -> None:
        """Raise ValueError for a budget that would grow, or a schedule that leaves no time to prune."""
        super().__post_init__()
        if self.initial_rank < self.rank:
            raise ValueError(
                f"peft.initial_rank={self.initial_rank} is below peft.rank={self.rank}: components are pruned, never "
                "added. Raise it, or lower peft.rank."
            )
        if self.warmup_fraction + self.final_fraction >= 1:
            raise ValueError(
                f"peft.warmup_fraction={self.warmup_fraction} and peft.final_fraction={self.final_fraction} leave no "
                "steps in which to prune: together they must stay below 1."
            )

    @abstractmethod
    def new_delta(self, target: Target, generator: torch.Generator, **common: Any) -> Prunable:
        """The update of one target, with ``initial_rank`` components; ``common``: arguments of every update."""

    @abstractmethod
    def observe(self, delta: Prunable) -> None:
        """Take one step into the statistics that ``delta`` is scored by."""

    def over_budget(self, adapter: Adapter) -> int:
        """Kept components beyond ``rank`` a target."""
        deltas = prunable(adapter)
        return sum(int(delta.kept.sum()) for delta in deltas) - len(deltas) * self.rank

    def select(self, backbone: Backbone) -> Selection:
        """As always; raises PeftlabError for a rank that cannot be."""
        selection = super().select(backbone)
        for target in selection.targets:
            require_rank(target, self.initial_rank, "initial_rank")
        return selection

    def build(self, selection: Selection, *, seed: int, batches: Any = None) -> Adapter:
        """Put an update on every target."""
        adapter = Adapter(self, selection.backbone)
        for target in selection.targets:
            generator = adapter_generator(seed, random_stream(target))
            delta = self.new_delta(target, generator, scale=self.alpha / self.initial_rank, dropout=self.dropout)
            adapter.put(target, delta)
        return adapter

    def closed_form(self, backbone: Backbone) -> int:
        """Σ initial_rank · (in + out + 1): pruned components still have their places."""
        return sum(self.initial_rank * (sum(target_features(t)) + 1) for t in self.select(backbone).targets)

    @abstractmethod
    def budget(self, step: int, total_steps: int, places: int) -> int:
        """Components that ``places`` targets may keep at ``step`` of ``total_steps``."""


def prunable(adapter: Adapter) -> list[Prunable]:
    """The updates of ``adapter``, in the order of their targets."""
    return [delta for delta in adapter.deltas() if isinstance(delta, Prunable)]


def components_kept(deltas: Sequence[Prunable]) -> int:
    """Components that all ``deltas`` together keep."""
    return int(torch.cat([delta.kept for delta in deltas]).sum())


def ranks(adapter: Adapter) -> dict[str, int]:
    """Components that each update keeps, by the name of its layer and its key there."""
    return {
        f"{placed.name}.{placed.key}": int(placed.delta.kept.sum())
        for placed in adapter.placed()
        if isinstance(placed.delta, Prunable)
    }


class Prunable(LowRank):
    """h = W x + s · B diag(d) A x, whose components can be pruned one by one."""

    kept: Tensor

    def __init__(self, target: Target, rank: int, *, diagonal: float, **factors: Any) -> None:
        super().__init__(target, rank, **factors)
        self.diagonal = nn.Parameter(torch.full((rank,), diagonal))  # d (r,)
        self.register_buffer("kept", torch.ones(rank, dtype=torch.bool))

    def expand(self, low: Tensor) -> Tensor:
        """The way up, (…, r) → (…, out)."""
        return super().expand(low * self.diagonal)

    def factors(self) -> tuple[Tensor, Tensor]:
        """A (r, in) and B diag(d) (out, r)."""
        return self.lora_A, self.lora_B * self.diagonal

    def dense(self) -> Tensor:
        """s · B diag(d) A as one matrix (out, in)."""
        return ((self.lora_B * self.diagonal) @ self.lora_A) * self.scale

    @abstractmethod
    def scores(self) -> Tensor:
        """How much each component matters (r,), comparable between updates."""

    @torch.no_grad()
    def prune(self, kept: Tensor | None = None) -> None:
        """Set d to zero where a component is not ``kept`` (r,); None: by the choice made last."""
        if kept is not None:
            self.kept.copy_(kept)
        self.diagonal.masked_fill_(~self.kept, 0.0)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        kept = "?" if self.kept.device.type == "meta" else int(self.kept.sum())
        return f"{super().extra_repr()}, kept={kept}"


def allocate(deltas: Sequence[Prunable], budget: int) -> None:
    """Keep the ``budget`` components of the highest scores among all ``deltas``; of equal ones the first."""
    scores = torch.cat([delta.scores().float() for delta in deltas])
    kept = torch.zeros_like(scores, dtype=torch.bool)
    kept[torch.argsort(scores, descending=True, stable=True)[:budget]] = True
    for delta, choice in zip(deltas, torch.split(kept, [delta.rank for delta in deltas]), strict=True):
        delta.prune(choice)
