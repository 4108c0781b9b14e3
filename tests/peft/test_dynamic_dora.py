"""Dynamic-rank DoRA against a plain implementation of its authors' formulas, step by step."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from peftlab.peft.adapter import Adapter
from peftlab.peft.base import attach
from peftlab.peft.dynamic_dora import ComponentsDelta, DynamicDoRA
from peftlab.peft.rank_budget import components_kept, prunable
from tests.peft.tiny import batch, tiny

TARGETS = ["query", "value", "ffn_up"]


class Plain:
    """The authors' method with matrices of full size, in float64: scores, schedule, mask and term.

    Source: github.com/MIkumikumi0116/DoRA, Src/Finetune_And_Benchmark/Finetune_Utils.py, read and written anew.
    """

    def __init__(self, strategy: DynamicDoRA, total: int) -> None:
        self.of = strategy
        self.total = total
        self.scores: list[Tensor] | None = None
        self.final: list[Tensor] | None = None

    def phase(self, step: int) -> tuple[int, int]:
        now = int(step - self.total * self.of.warmup_fraction)
        return now, int(self.total * (1 - self.of.warmup_fraction - self.of.final_fraction))

    def term(self, step: int, factors: list[tuple[Tensor, Tensor, Tensor]]) -> float:
        now, last = self.phase(step)
        if now > last:
            return 0.0
        sample_variances = []
        for A, _, B in factors:
            for vector in (*A, *B.T):
                mean = vector.sum() / len(vector)
                sample_variances.append(float(((vector - mean) ** 2).sum() / (len(vector) - 1)))
        return self.of.equilibrium * sum(sample_variances) / (len(factors) * 2 * self.of.initial_rank)

    def step(self, step: int, factors: list[tuple[Tensor, Tensor, Tensor]]) -> list[Tensor]:
        """What the step leaves of every c."""
        now, last = self.phase(step)
        c = [middle.clone() for _, middle, _ in factors]
        if now > last:
            assert self.final is not None
            return [one.masked_fill(gone, 0.0) for one, gone in zip(c, self.final, strict=True)]
        self.observe(factors)
        assert self.scores is not None
        if now < 0 or (now % self.of.interval and now != last):
            return c
        everything = torch.cat(self.scores)
        rate = (self.of.initial_rank - self.of.rank) / self.of.initial_rank * (now / last) ** 3
        threshold = everything.sort().values[max(int(len(everything) * rate), 1) - 1]
        gone = [score <= threshold for score in self.scores]
        if now == last:
            self.final = gone
        return [one.masked_fill(dead, 0.0) for one, dead in zip(c, gone, strict=True)]

    def observe(self, factors: list[tuple[Tensor, Tensor, Tensor]]) -> None:
        before = self.scores or [torch.zeros(len(c), dtype=torch.float64) for _, c, _ in factors]
        self.scores = []
        for (A, c, B), smooth in zip(factors, before, strict=True):
            parts = [c[i] * torch.outer(B[:, i], A[i]) for i in range(len(c))]
            whole = torch.stack(parts).sum(dim=0).norm() + 1e-8
            share = torch.stack([part.norm() for part in parts]) / whole
            self.scores.append(self.of.beta * smooth + (1 - self.of.beta) * share)


def factors_of(adapter: Adapter) -> list[tuple[Tensor, Tensor, Tensor]]:
    """A (r, in), c (r) and B (out, r) of every target, in float64."""
    deltas = prunable(adapter)
    return [tuple(p.detach().double().clone() for p in (d.lora_A, d.diagonal, d.lora_B)) for d in deltas]  # type: ignore[misc]


def test_seven_hundred_steps_are_the_authors() -> None:
    """Parameters walk at random, as an optimizer would move them; pruned components can come back until the end."""
    strategy = DynamicDoRA(targets=TARGETS, rank=4, initial_rank=6, interval=20)
    total = 700
    adapter = attach(tiny("bert"), strategy, seed=0)
    deltas, plain = prunable(adapter), Plain(strategy, total)
    generator, kept = torch.Generator().manual_seed(3), []
    for step in range(1, total + 1):
        with torch.no_grad():
            for parameter in (p for delta in deltas for p in delta.parameters()):
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
        factors = factors_of(adapter)
        term = adapter.regularization(step, total)
        assert (0.0 if term is None else term.item()) == pytest.approx(plain.term(step, factors), rel=1e-5)
        expected = plain.step(step, factors)
        adapter.on_step(step, total)
        for delta, c in zip(deltas, expected, strict=True):
            assert torch.equal(delta.diagonal.detach().double(), c), step
        assert plain.scores is not None
        if plain.phase(step)[0] <= plain.phase(step)[1]:
            scores = torch.cat([delta.scores() for delta in deltas]).double()
            torch.testing.assert_close(scores, torch.cat(plain.scores), atol=0, rtol=1e-4)
        kept.append(sum(int((c != 0).sum()) for c in expected))
    places = len(deltas)
    assert kept[:104] == [places * 6] * 104, "the warmup"
    assert kept[-1] == places * 4 == components_kept(deltas)
    assert len({*kept}) > 3


def test_the_budget_is_pruned_late() -> None:
    """b = r0 - (r0 - r) p^3 at every step of 700, for 24 targets; half way an eighth of what will go has gone."""
    strategy = DynamicDoRA()
    assert (strategy.rank, strategy.initial_rank) == (8, 12)
    budgets = [strategy.budget(step, 700, 24) for step in range(1, 701)]
    start = 700 * 0.15
    for step, budget in enumerate(budgets, 1):
        p = min(max((step - start) / (700 - start - 350), 0.0), 1.0)
        assert abs(budget - 24 * (12 - 4 * p**3)) < 2.3, step  # the authors' 245 steps are 244 by rounding
    assert budgets[104] == 288
    assert budgets[226] == 288 - 12
    assert budgets[349:] == [192] * 351


def test_it_starts_as_the_authors_do() -> None:
    """c from zero, A and B uniform as by kaiming_uniform_ of a linear layer's weight with a=0."""
    adapter = attach(tiny("bert"), DynamicDoRA(targets=["query", "ffn_up"], initial_rank=6, rank=4), seed=0)
    for delta in prunable(adapter):
        assert delta.scale == 8.0 / 6
        assert not delta.diagonal.any()
        for factor, fan_in in ((delta.lora_A.detach(), 32), (delta.lora_B.detach(), 6)):
            bound = math.sqrt(6 / fan_in)
            assert factor.shape[1] == fan_in
            assert 0.9 * bound < float(factor.abs().max()) <= bound
            assert float(factor.var()) == pytest.approx(bound**2 / 3, rel=0.35)


def test_an_embedding_learns_too() -> None:
    adapter = attach(tiny("bert"), DynamicDoRA(targets=["embedding"], rank=2, initial_rank=3), seed=0)
    adapter.backbone(*batch()).square().sum().backward()
    (delta,) = prunable(adapter)
    assert delta.diagonal.grad is not None
    assert delta.diagonal.grad.abs().min() > 0


def test_the_term_counts_pruned_components_and_ends() -> None:
    fields: dict[str, Any] = {"targets": ["query", "ffn_up"], "initial_rank": 3, "rank": 2}
    adapter = attach(tiny("bert"), DynamicDoRA(**fields, equilibrium=0.4), seed=0)
    before = adapter.regularization(1, 100)
    prunable(adapter)[0].prune(torch.tensor([True, False, False]))
    assert before is not None
    assert torch.equal(before, adapter.regularization(50, 100))  # type: ignore[arg-type]
    assert adapter.regularization(51, 100) is None
    assert attach(tiny("bert"), DynamicDoRA(**fields, equilibrium=0), seed=0).regularization(1, 100) is None


def test_equal_ranks_prune_nothing() -> None:
    strategy = DynamicDoRA(targets=["query"], initial_rank=3, rank=3, interval=1)
    adapter = attach(tiny("bert"), strategy, seed=0)
    for step in range(1, 21):
        adapter.on_step(step, 20)
    assert components_kept(prunable(adapter)) == 3 * len(prunable(adapter))


def test_shares_are_those_of_dense_matrices() -> None:
    delta = prunable(attach(tiny("bert"), DynamicDoRA(targets=["ffn_up"], initial_rank=4, rank=2), seed=0))[0]
    assert isinstance(delta, ComponentsDelta)
    assert torch.equal(delta.shares(), torch.zeros(4)), "while the update is zero"
