"""AdaLoRA and dynamic-rank DoRA: importance by slow references, the schedule, exact resuming, whole runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from peftlab.composition import checked
from peftlab.errors import PeftlabError
from peftlab.peft.adalora import AdaLoRA, SVDDelta
from peftlab.peft.adapter import Adapter
from peftlab.peft.base import attach
from peftlab.peft.compose import Compose
from peftlab.peft.dynamic_dora import DynamicDoRA
from peftlab.peft.lora import LoRA
from peftlab.peft.rank_budget import Prunable, RankBudgetStrategy, allocate, prunable, ranks
from peftlab.records.identity import run_tags
from peftlab.runs.counted import count_parameters
from tests.conftest import TINY, Peftlab, run_folder
from tests.peft.tiny import KINDS, batch, tiny

BOTH = [AdaLoRA, DynamicDoRA]
LABELS = torch.tensor([0, 1, 2, 0])


def randomised(deltas: list[Prunable], seed: int = 5) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for delta in deltas:
            for parameter in delta.parameters():
                parameter.normal_(std=0.3, generator=generator)


def train(adapter: Adapter, optimizer: Any, steps: range, total: int) -> list[int]:
    """As a run does; return the number of components that act after each step."""
    kept = []
    for step in steps:
        optimizer.zero_grad()
        loss = F.cross_entropy(adapter.backbone(*batch()), LABELS.roll(step // 4))
        penalty = adapter.regularization(step, total)
        (loss if penalty is None else loss + penalty).backward()
        optimizer.step()
        adapter.on_step(step, total)
        kept.append(sum(ranks(adapter).values()))
    return kept


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize("kind", KINDS)
def test_it_starts_as_the_backbone_and_has_the_formula_s_size(cls: type[RankBudgetStrategy], kind: str) -> None:
    backbone, strategy = tiny(kind), cls(targets=["query", "value", "ffn_up", "embedding"], initial_rank=5, rank=2)
    expected = strategy.closed_form(backbone)
    before = backbone(*batch())
    adapter = attach(backbone, strategy, seed=0)
    assert torch.equal(before, backbone(*batch()))
    assert count_parameters(adapter)["trainable_without_head"] == expected
    if kind == "bert":
        assert expected == 5 * (2 * (2 * (32 + 32 + 1) + (32 + 64 + 1)) + (300 + 32 + 1))


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_the_output_is_that_of_the_dense_sum(cls: type[RankBudgetStrategy], kind: str) -> None:
    strategy = cls(targets=["query", "embedding"], initial_rank=4, rank=2, alpha=6.0)
    adapter = attach(tiny(kind), strategy, seed=0)
    randomised(prunable(adapter))
    assert len(prunable(adapter)) == len(adapter.deltas()) == 3
    for placed in adapter.placed():
        delta: Any = placed.delta
        dense = sum(d * torch.outer(b, a) for d, b, a in zip(delta.diagonal, delta.lora_B.T, delta.lora_A, strict=True))
        dense = dense * (6.0 / 4)
        torch.testing.assert_close(delta.dense(), dense)
        if delta.embedding:
            x = torch.tensor([3, 7, 3])
            expected = dense.T[x]
        else:
            x = torch.randn(3, 32)
            expected = x @ dense.T
        torch.testing.assert_close(delta.low_rank(x), expected, atol=1e-5, rtol=1e-5)
        change = (placed.layer(x) - placed.layer.base(x))[..., delta.rows or slice(None)]
        torch.testing.assert_close(change, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize("kind", KINDS)
def test_merged_equals_unmerged(cls: type[RankBudgetStrategy], kind: str) -> None:
    backbone = tiny(kind)
    adapter = attach(backbone, cls(targets=["query", "value", "embedding"], initial_rank=4, rank=2), seed=0)
    deltas = prunable(adapter)
    randomised(deltas)
    for delta in deltas:
        delta.prune(torch.tensor([True, False, True, True]))
    weights = {n: p.clone() for n, p in backbone.model.named_parameters()}
    with torch.no_grad():
        expected = backbone(*batch())
        adapter.merge()
        assert not torch.equal(expected, tiny(kind)(*batch()))
        torch.testing.assert_close(backbone(*batch()), expected, atol=1e-4, rtol=1e-4)
        adapter.unmerge()
        assert torch.equal(backbone(*batch()), expected)
    for name, parameter in backbone.model.named_parameters():
        assert torch.equal(parameter, weights[name]), name


def test_adalora_s_importance_is_the_paper_s() -> None:
    """Equations 7 to 11, weight by weight."""
    strategy = AdaLoRA(targets=["query"], initial_rank=3, rank=2, beta1=0.7, beta2=0.6)
    delta = prunable(attach(tiny("bert"), strategy, seed=0))[0]
    assert isinstance(delta, SVDDelta)
    smooth = {name: torch.zeros_like(p).double() for name, p in delta.named_parameters()}
    unsure = {name: torch.zeros_like(p).double() for name, p in delta.named_parameters()}
    for step in range(4):
        randomised([delta], seed=step)
        for name, parameter in delta.named_parameters():
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step))
            now = (parameter.double() * parameter.grad.double()).abs().detach()
            smooth[name] = 0.7 * smooth[name] + 0.3 * now
            unsure[name] = 0.6 * unsure[name] + 0.4 * (now - smooth[name]).abs()
        strategy.observe(delta)
    score = {name: smooth[name] * unsure[name] for name in smooth}
    A, B = score["lora_A"], score["lora_B"]
    expected = [score["diagonal"][i] + A[i, :].sum() / 32 + B[:, i].sum() / 32 for i in range(3)]
    torch.testing.assert_close(delta.scores().double(), torch.stack(expected), atol=0, rtol=1e-5)


def test_a_step_that_a_loss_scaler_skips_is_not_observed() -> None:
    strategy = AdaLoRA(targets=["query"], initial_rank=3, rank=2)
    delta = prunable(attach(tiny("bert"), strategy, seed=0))[0]
    randomised([delta])
    for parameter in delta.parameters():
        parameter.grad = torch.ones_like(parameter)
    strategy.observe(delta)
    before = delta.scores().clone()
    assert before.abs().min() > 0
    for parameter in delta.parameters():
        assert parameter.grad is not None
        parameter.grad.view(-1)[0] = torch.inf
    strategy.observe(delta)
    assert torch.equal(delta.scores(), before)


def test_allocation_keeps_the_best_among_all_targets() -> None:
    strategy = DynamicDoRA(targets=["query", "value"], initial_rank=4, rank=2)
    deltas = prunable(attach(tiny("bert"), strategy, seed=0))
    scores = torch.rand(4, 4, generator=torch.Generator().manual_seed(1))
    for delta, row in zip(deltas, scores, strict=True):
        delta.get_buffer("importance").copy_(row)
        delta.diagonal.data.fill_(1.0)
    allocate(deltas, 7)
    order = sorted(((float(scores[i, j]), i, j) for i in range(4) for j in range(4)), reverse=True)
    best = {(i, j) for _, i, j in order[:7]}
    for i, delta in enumerate(deltas):
        assert delta.kept.tolist() == [(i, j) in best for j in range(4)]
        assert delta.diagonal.tolist() == [float((i, j) in best) for j in range(4)]
    for delta in deltas:
        delta.get_buffer("importance").zero_()
    allocate(deltas, 5)
    assert [int(delta.kept.sum()) for delta in deltas] == [4, 1, 0, 0], "equal scores: the first ones"


def test_rank_goes_to_where_the_magnitude_is() -> None:
    """An update that one component dominates keeps little; one of equal components keeps all of them."""
    strategy = DynamicDoRA(targets=["query", "value"], initial_rank=6, rank=3, interval=1)
    adapter = attach(tiny("bert"), strategy, seed=0)
    deltas = prunable(adapter)
    weights = torch.tensor([1.0, 0.02, 0.02, 0.02, 0.02, 0.02])
    with torch.no_grad():
        for number, delta in enumerate(deltas):
            torch.nn.init.orthogonal_(delta.lora_A, generator=torch.Generator().manual_seed(number))
            torch.nn.init.orthogonal_(delta.lora_B, generator=torch.Generator().manual_seed(10 + number))
            delta.diagonal.copy_(weights if number in (0, 3) else torch.ones(6))
    for step in range(20):
        adapter.on_step(step, 20)
    found = list(ranks(adapter).values())
    assert found == [int(delta.kept.sum()) for delta in deltas]
    assert sum(found) == 12
    assert deltas[0].kept[0]
    assert deltas[3].kept[0]
    assert min(found[1], found[2]) == 5
    assert max(found[0], found[3]) == 1


def test_adalora_s_budget_is_the_cubic_schedule() -> None:
    strategy = AdaLoRA(rank=8, initial_rank=12, warmup_fraction=0.1, final_fraction=0.5)
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
    strategy = cls(targets=["query", "ffn_up"], initial_rank=6, rank=4, interval=3)
    adapter = attach(tiny("bert"), strategy, seed=0)
    optimizer = torch.optim.AdamW(adapter.param_groups(0.01))
    kept = train(adapter, optimizer, range(first, first + total), total)
    assert kept[-1] == 4 * 4
    assert kept == sorted(kept, reverse=True)
    for delta in prunable(adapter):
        assert torch.equal(delta.diagonal == 0, ~delta.kept)
    if total == 30:
        assert kept[:3] == [24] * 3
        assert len(set(kept)) >= 4, "pruned little by little"


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize("cut", [5, 11, 16, 25])
def test_a_resumed_run_goes_on_to_the_bit(cls: type[RankBudgetStrategy], cut: int) -> None:
    """In the warmup, between two allocations, right after the last one, and at the end."""
    fields: dict[str, Any] = {"targets": ["query", "ffn_up"], "initial_rank": 6, "rank": 3, "interval": 4}
    adapter = attach(tiny("bert"), cls(**fields), seed=0)
    optimizer = torch.optim.AdamW(adapter.param_groups(0.01))
    train(adapter, optimizer, range(cut), 30)
    state = {name: tensor.clone() for name, tensor in adapter.state_dict().items()}
    moments = optimizer.state_dict()
    again = attach(tiny("bert"), cls(**fields), seed=7)
    again.load_state_dict(state)
    resumed = torch.optim.AdamW(again.param_groups(0.01))
    resumed.load_state_dict({"state": {k: {n: t.clone() for n, t in v.items()} for k, v in moments["state"].items()},
                             "param_groups": moments["param_groups"]})  # fmt: skip
    assert torch.equal(again.backbone(*batch()), adapter.backbone(*batch()))
    assert ranks(again) == ranks(adapter)
    one = train(adapter, optimizer, range(cut, 30), 30)
    two = train(again, resumed, range(cut, 30), 30)
    assert one == two
    found = again.state_dict()
    for name, tensor in adapter.state_dict().items():
        assert torch.equal(tensor, found[name]), name


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
        attach(tiny("bert"), cls(initial_rank=40), seed=0)


@pytest.mark.parametrize("cls", [AdaLoRA, DynamicDoRA])
def test_it_says_how_far_it_is_beyond_its_budget(cls: type[RankBudgetStrategy]) -> None:
    adapter = attach(tiny("bert"), cls(rank=2, initial_rank=3, targets=["query", "value"]), seed=0)
    deltas = prunable(adapter)
    assert adapter.over_budget() == len(deltas)
    for delta in deltas:
        delta.prune(torch.tensor([True, False, True]))
    assert adapter.over_budget() == 0
    assert attach(tiny("bert"), LoRA(), seed=0).over_budget() is None
    both = Compose(methods=[{"name": "adalora", "rank": 2, "initial_rank": 3, "targets": ["query"]}, "bitfit"])
    assert attach(tiny("bert"), both, seed=0).over_budget() == len(deltas) // 2


def test_whose_epoch_waits_for_the_budget_has_another_key() -> None:
    def waits(*typed: str) -> bool:
        return "budget-first-1" in run_tags(checked(["data=hub", "data.id=some/set", "backbone=tiny", *typed]))

    assert waits("peft=adalora")
    assert waits("peft=dynamic_dora")
    assert waits("peft=compose", "peft.methods=[{name: adalora}, bitfit]")
    assert waits("peft=compose", "peft.methods=[adalora, bitfit]")
    assert not waits("peft=adalora", "trainer.max_epochs=2"), "its first epoch ends at the last allocation"
    assert waits("peft=adalora", "trainer.max_epochs=2", "peft.final_fraction=0.4")
    assert not waits("peft=adalora", "trainer.select=last")
    assert not waits("peft=lora")
