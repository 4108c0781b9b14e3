"""AdaLoRA and dynamic-rank DoRA: importance by slow references, the schedule, exact resuming, whole runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from peftlab.errors import PeftlabError
from peftlab.peft.adalora import AdaLoRA, SVDUpdate
from peftlab.peft.base import apply
from peftlab.peft.dynamic_dora import ComponentUpdate, DynamicDoRA
from peftlab.peft.rank_budget import PrunableUpdate, RankBudgetStrategy, allocate
from peftlab.runs.assemble import count_parameters
from tests.conftest import TINY, Peftlab, run_folder
from tests.peft.tiny import KINDS, batch, tiny

BOTH = [AdaLoRA, DynamicDoRA]
LABELS = torch.tensor([0, 1, 2, 0])


def randomised(updates: list[PrunableUpdate], seed: int = 5) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for update in updates:
            for parameter in update.parameters():
                parameter.normal_(std=0.3, generator=generator)


def train(strategy: RankBudgetStrategy, backbone: Any, optimizer: Any, steps: range, total: int) -> list[int]:
    """As a run does; return the number of components that act after each step."""
    kept = []
    for step in steps:
        optimizer.zero_grad()
        loss = F.cross_entropy(backbone(*batch()), LABELS.roll(step // 4))
        penalty = strategy.regularization(backbone)
        (loss if penalty is None else loss + penalty).backward()
        optimizer.step()
        strategy.on_train_step(backbone, step, total)
        kept.append(sum(strategy.ranks(backbone).values()))
    return kept


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize("kind", KINDS)
def test_it_starts_as_the_backbone_and_has_the_formula_s_size(cls: type[RankBudgetStrategy], kind: str) -> None:
    backbone, strategy = tiny(kind), cls(targets=["query", "value", "ffn_up", "embedding"], initial_rank=5, rank=2)
    expected = strategy.closed_form(backbone)
    before = backbone(*batch())
    apply(strategy, backbone, seed=0)
    assert torch.equal(before, backbone(*batch()))
    assert count_parameters(backbone)["trainable_without_head"] == expected
    if kind == "bert":
        assert expected == 5 * (2 * (2 * (32 + 32 + 1) + (32 + 64 + 1)) + (300 + 32 + 1))


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_the_output_is_that_of_the_dense_sum(cls: type[RankBudgetStrategy], kind: str) -> None:
    backbone, strategy = tiny(kind), cls(targets=["query", "embedding"], initial_rank=4, rank=2, alpha=6.0)
    apply(strategy, backbone, seed=0)
    randomised(list(strategy.updates(backbone).values()))
    for update in strategy.updates(backbone).values():
        dense = sum(d * torch.outer(b, a) for d, b, a in zip(update.diagonal, update.B.T, update.A, strict=True))
        dense = dense * (6.0 / 4)
        torch.testing.assert_close(update.dense(), dense)
        if update.embedding:
            ids = torch.tensor([3, 7, 3])
            torch.testing.assert_close(update.lookup(ids), dense.T[ids], atol=1e-5, rtol=1e-5)
        else:
            x = torch.randn(3, 32)
            torch.testing.assert_close(update(x), x @ dense.T, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize("kind", KINDS)
def test_merged_equals_unmerged(cls: type[RankBudgetStrategy], kind: str) -> None:
    backbone, strategy = tiny(kind), cls(targets=["query", "value", "embedding"], initial_rank=4, rank=2)
    apply(strategy, backbone, seed=0)
    updates = list(strategy.updates(backbone).values())
    randomised(updates)
    for update in updates:
        update.prune(torch.tensor([True, False, True, True]))
    with torch.no_grad():
        expected = backbone(*batch())
        strategy.merge(backbone)
        assert not torch.equal(expected, tiny(kind)(*batch()))
        torch.testing.assert_close(backbone(*batch()), expected, atol=1e-4, rtol=1e-4)
        strategy.unmerge(backbone)
        torch.testing.assert_close(backbone(*batch()), expected, atol=1e-4, rtol=1e-4)


def test_adalora_s_importance_is_the_paper_s() -> None:
    """Equations 7 to 11, weight by weight."""
    backbone, strategy = tiny("bert"), AdaLoRA(targets=["query"], initial_rank=3, rank=2, beta1=0.7, beta2=0.6)
    apply(strategy, backbone, seed=0)
    update = next(iter(strategy.updates(backbone).values()))
    assert isinstance(update, SVDUpdate)
    smooth = {name: torch.zeros_like(p).double() for name, p in update.named_parameters()}
    unsure = {name: torch.zeros_like(p).double() for name, p in update.named_parameters()}
    for step in range(4):
        randomised([update], seed=step)
        for name, parameter in update.named_parameters():
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step))
            now = (parameter.double() * parameter.grad.double()).abs().detach()
            smooth[name] = 0.7 * smooth[name] + 0.3 * now
            unsure[name] = 0.6 * unsure[name] + 0.4 * (now - smooth[name]).abs()
        strategy.observe(update)
    score = {name: smooth[name] * unsure[name] for name in smooth}
    expected = [score["diagonal"][i] + score["A"][i, :].sum() / 32 + score["B"][:, i].sum() / 32 for i in range(3)]
    torch.testing.assert_close(update.scores().double(), torch.stack(expected), atol=0, rtol=1e-5)


def test_a_step_that_a_loss_scaler_skips_is_not_observed() -> None:
    backbone, strategy = tiny("bert"), AdaLoRA(targets=["query"], initial_rank=3, rank=2)
    apply(strategy, backbone, seed=0)
    update = next(iter(strategy.updates(backbone).values()))
    randomised([update])
    for parameter in update.parameters():
        parameter.grad = torch.ones_like(parameter)
    strategy.observe(update)
    before = update.scores().clone()
    for parameter in update.parameters():
        parameter.grad.view(-1)[0] = torch.inf
    strategy.observe(update)
    assert torch.equal(update.scores(), before)


def test_dynamic_dora_s_shares_are_those_of_dense_matrices() -> None:
    backbone, strategy = tiny("bert"), DynamicDoRA(targets=["ffn_up"], initial_rank=4, rank=2, beta=0.8)
    apply(strategy, backbone, seed=0)
    update = next(iter(strategy.updates(backbone).values()))
    assert isinstance(update, ComponentUpdate)
    assert torch.equal(update.shares(), torch.zeros(4)), "while the update is zero"
    smoothed = torch.zeros(4, dtype=torch.float64)
    for step in range(3):
        randomised([update], seed=step)
        parts = [
            d.double() * torch.outer(b.double(), a.double())
            for d, b, a in zip(update.diagonal, update.B.T, update.A, strict=True)
        ]
        shares = torch.stack([part.norm() for part in parts]) / sum(parts).norm()  # type: ignore[union-attr]
        torch.testing.assert_close(update.shares().double(), shares, atol=0, rtol=1e-5)
        smoothed = 0.8 * smoothed + 0.2 * shares
        strategy.observe(update)
    torch.testing.assert_close(update.scores().double(), smoothed.detach(), atol=0, rtol=1e-5)


def test_dynamic_dora_s_term_is_the_mean_variance_of_kept_components() -> None:
    backbone, strategy = tiny("bert"), DynamicDoRA(targets=["query", "ffn_up"], initial_rank=3, rank=2, equilibrium=0.4)
    apply(strategy, backbone, seed=0)
    updates = list(strategy.updates(backbone).values())
    randomised(updates)
    updates[0].prune(torch.tensor([True, False, False]))
    values = [
        sum(((v - v.mean()) ** 2).mean() for v in (update.A[i], update.B[:, i]))
        for update in updates
        for i in range(3)
        if update.kept[i]
    ]
    assert len(values) == 1 + 3 * 3
    penalty = strategy.regularization(backbone)
    torch.testing.assert_close(penalty, 0.4 * torch.stack(values).mean())  # type: ignore[arg-type]
    assert DynamicDoRA(equilibrium=0.0).regularization(backbone) is None
    assert AdaLoRA(orthogonality=0.0).regularization(backbone) is None


def test_allocation_keeps_the_best_among_all_targets() -> None:
    backbone, strategy = tiny("bert"), DynamicDoRA(targets=["query", "value"], initial_rank=4, rank=2)
    apply(strategy, backbone, seed=0)
    updates = list(strategy.updates(backbone).values())
    scores = torch.rand(4, 4, generator=torch.Generator().manual_seed(1))
    for update, row in zip(updates, scores, strict=True):
        update.importance.copy_(row)
    allocate(updates, 7)
    order = sorted(((float(scores[i, j]), i, j) for i in range(4) for j in range(4)), reverse=True)
    best = {(i, j) for _, i, j in order[:7]}
    for i, update in enumerate(updates):
        assert update.kept.tolist() == [(i, j) in best for j in range(4)]
        assert update.diagonal.tolist() == [float((i, j) in best) for j in range(4)]
    for update in updates:
        update.importance.zero_()
    allocate(updates, 5)
    assert [int(update.kept.sum()) for update in updates] == [4, 1, 0, 0], "equal scores: the first ones"


def test_rank_goes_to_where_the_magnitude_is() -> None:
    """An update that one component dominates keeps little; one of equal components keeps all of them."""
    backbone = tiny("bert")
    strategy = DynamicDoRA(targets=["query", "value"], initial_rank=6, rank=3, interval=1)
    apply(strategy, backbone, seed=0)
    updates = list(strategy.updates(backbone).values())
    weights = torch.tensor([1.0, 0.02, 0.02, 0.02, 0.02, 0.02])
    with torch.no_grad():
        for number, update in enumerate(updates):
            torch.nn.init.orthogonal_(update.A, generator=torch.Generator().manual_seed(number))
            torch.nn.init.orthogonal_(update.B, generator=torch.Generator().manual_seed(10 + number))
            update.diagonal.copy_(weights if number in (0, 3) else torch.ones(6))
    for step in range(20):
        strategy.on_train_step(backbone, step, 20)
    ranks = list(strategy.ranks(backbone).values())
    assert sum(ranks) == 12
    assert updates[0].kept[0]
    assert updates[3].kept[0]
    assert min(ranks[1], ranks[2]) == 5
    assert max(ranks[0], ranks[3]) == 1


@pytest.mark.parametrize("cls", BOTH)
def test_the_budget_is_the_cubic_schedule(cls: type[RankBudgetStrategy]) -> None:
    strategy = cls(rank=8, initial_rank=12, warmup_fraction=0.1, final_fraction=0.5)
    assert strategy.phases(100) == (10, 50)
    budgets = [strategy.budget(step, 100, 24) for step in range(100)]
    assert budgets[:11] == [288] * 11
    assert budgets[30] == int(192 + 96 * 0.5**3)
    assert budgets[50:] == [192] * 50
    assert budgets == sorted(budgets, reverse=True)


@pytest.mark.parametrize("total", [1, 2, 3, 7, 30])
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("cls", BOTH)
def test_a_run_of_any_length_ends_with_the_budget(cls: type[RankBudgetStrategy], first: int, total: int) -> None:
    """Whether the caller counts its steps from zero or from one."""
    backbone, strategy = tiny("bert"), cls(targets=["query", "ffn_up"], initial_rank=6, rank=4, interval=3)
    apply(strategy, backbone, seed=0)
    optimizer = torch.optim.AdamW(strategy.param_groups(backbone, 0.01))
    kept = train(strategy, backbone, optimizer, range(first, first + total), total)
    assert kept[-1] == 4 * 4
    assert kept == sorted(kept, reverse=True)
    for update in strategy.updates(backbone).values():
        assert torch.equal(update.diagonal == 0, ~update.kept)
    if total == 30:
        assert kept[:4] == [24] * 4
        assert len(set(kept)) >= 4, "pruned little by little"


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize("cut", [5, 11, 16, 25])
def test_a_resumed_run_goes_on_to_the_bit(cls: type[RankBudgetStrategy], cut: int) -> None:
    """In the warmup, between two allocations, right after the last one, and at the end."""
    fields: dict[str, Any] = {"targets": ["query", "ffn_up"], "initial_rank": 6, "rank": 3, "interval": 4}
    backbone, strategy = tiny("bert"), cls(**fields)
    apply(strategy, backbone, seed=0)
    optimizer = torch.optim.AdamW(strategy.param_groups(backbone, 0.01))
    train(strategy, backbone, optimizer, range(cut), 30)
    state = {name: tensor.clone() for name, tensor in strategy.adapter_state(backbone).items()}
    moments = optimizer.state_dict()
    other, again = tiny("bert"), cls(**fields)
    apply(again, other, seed=7)
    again.load_adapter_state(other, state)
    resumed = torch.optim.AdamW(again.param_groups(other, 0.01))
    resumed.load_state_dict({"state": {k: {n: t.clone() for n, t in v.items()} for k, v in moments["state"].items()},
                             "param_groups": moments["param_groups"]})  # fmt: skip
    assert torch.equal(other(*batch()), backbone(*batch()))
    assert again.ranks(other) == strategy.ranks(backbone)
    one = train(strategy, backbone, optimizer, range(cut, 30), 30)
    two = train(again, other, resumed, range(cut, 30), 30)
    assert one == two
    for name, tensor in strategy.adapter_state(backbone).items():
        assert torch.equal(tensor, again.adapter_state(other)[name]), name


@pytest.mark.parametrize("method", ["adalora", "dynamic_dora"])
def test_a_whole_run_needs_no_further_call(peftlab: Peftlab, reviews: Path, method: str) -> None:
    done = peftlab(
        "train", *TINY, f"data.path={reviews}", f"peft={method}", "trainer.max_epochs=2", "trainer.select=last",
        "peft.rank=2", "peft.initial_rank=5", "peft.interval=2", "optim.lr=0.01",
    )  # fmt: skip
    assert done.status == 0, done.err
    state = load_file(run_folder() / "adapter.safetensors")
    kept = {name.removesuffix(".kept"): mask for name, mask in state.items() if name.endswith(".kept")}
    assert len(kept) == 12
    assert sum(int(mask.sum()) for mask in kept.values()) == 12 * 2
    for name, mask in kept.items():
        assert torch.equal(state[f"{name}.diagonal"] != 0, mask)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"rank": 8, "initial_rank": 6}, "peft.initial_rank=6 is below peft.rank=8"),
        ({"warmup_fraction": 0.5, "final_fraction": 0.5}, "leave no steps"),
        ({"targets": []}, "peft.targets is empty"),
    ],
)
@pytest.mark.parametrize("cls", BOTH)
def test_fields_that_do_not_fit_together(cls: type[RankBudgetStrategy], fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        cls(**fields)


@pytest.mark.parametrize("cls", BOTH)
def test_a_rank_that_cannot_be_is_refused(cls: type[RankBudgetStrategy]) -> None:
    with pytest.raises(PeftlabError, match=r"peft\.initial_rank=40 is above"):
        apply(cls(initial_rank=40), tiny("bert"), seed=0)
