"""AdaLoRA is HF peft's: logits, gradients, the orthogonal term, and which triplets are pruned at which step."""

from __future__ import annotations

import copy
from typing import Any

import peft
import pytest
import torch
from torch.nn import functional as F

from peftlab.peft.adalora import AdaLoRA
from peftlab.peft.adapter import Adapter
from peftlab.peft.base import attach
from peftlab.peft.rank_budget import Prunable, ranks
from tests.peft.low_rank_oracle import ALL_KINDS, FFN, LABELS, NAMES, Pairs, compare, paired, randomise
from tests.peft.tiny import batch, tiny

TOTAL = 40


def side_by_side(kind: str, targets: list[str], **fields: Any) -> tuple[Adapter, Any]:
    backbone = tiny(kind)
    oracle_model = copy.deepcopy(backbone.model)
    strategy = AdaLoRA(targets=targets, initial_rank=6, rank=3, alpha=6.0, interval=3, **fields)
    adapter = attach(backbone, strategy, seed=1, train_head=False)
    warm, last = strategy.phases(TOTAL)
    config = peft.AdaLoraConfig(
        target_modules=targets,
        init_r=6,
        target_r=3,
        lora_alpha=6,
        lora_dropout=0.0,
        tinit=warm,
        tfinal=TOTAL - last,
        deltaT=3,
        total_step=TOTAL,
        beta1=strategy.beta1,
        beta2=strategy.beta2,
        orth_reg_weight=strategy.orthogonality,
        fan_in_fan_out=kind == "gpt2",
    )
    return adapter, peft.get_peft_model(oracle_model, config).eval()


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_logits_and_gradients(kind: str) -> None:
    adapter, oracle = side_by_side(kind, [*NAMES[kind], FFN[kind]])
    pairs = paired(adapter, oracle)
    randomise(pairs, std=0.5)
    compare(adapter, oracle, pairs)


@pytest.mark.parametrize("orthogonality", [0.5, 0.1])
def test_the_orthogonal_term_and_its_gradients(orthogonality: float) -> None:
    adapter, oracle = side_by_side("bert", NAMES["bert"], orthogonality=orthogonality)
    pairs = paired(adapter, oracle)
    randomise(pairs, std=0.3)
    ids, mask = batch()
    penalty = adapter.regularization(1, TOTAL)
    assert penalty is not None
    loss = F.cross_entropy(adapter.backbone(ids, mask), LABELS) + penalty
    expected = oracle.base_model(input_ids=ids, attention_mask=mask, labels=LABELS).loss
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)
    assert penalty > 0.05
    loss.backward()
    expected.backward()
    for name, mine, other in pairs:
        torch.testing.assert_close(mine.grad, other.grad.view(mine.shape), atol=1e-5, rtol=0, msg=name)


def masks(oracle: Any, pairs: Pairs) -> dict[str, torch.Tensor]:
    """What HF peft keeps, by the name of our diagonal; nothing before its first allocation."""
    pattern = oracle.peft_config["default"].rank_pattern
    if pattern is None:
        return {}
    ids = {id(parameter): name for name, parameter in oracle.base_model.model.named_parameters()}
    return {name: torch.tensor(pattern[ids[id(other)]]) for name, _, other in pairs if name.endswith("diagonal")}


@pytest.mark.parametrize("fields", [{}, {"warmup_fraction": 0.25, "final_fraction": 0.3, "beta1": 0.5, "beta2": 0.9}])
def test_the_same_triplets_are_pruned_at_the_same_steps(fields: dict[str, Any]) -> None:
    adapter, oracle = side_by_side("bert", [*NAMES["bert"], FFN["bert"]], **fields)
    pairs = paired(adapter, oracle)
    with torch.no_grad():
        for _, mine, other in pairs:
            other.copy_(mine.view(other.shape))
    ours = torch.optim.AdamW([mine for _, mine, _ in pairs], lr=0.01)
    theirs = torch.optim.AdamW([other for _, _, other in pairs], lr=0.01)
    ids, mask = batch()
    kept_counts, changes, previous = [], 0, {}
    for step in range(TOTAL):
        ours.zero_grad()
        labels = LABELS.roll(step // 5)
        penalty = adapter.regularization(step, TOTAL)
        assert penalty is not None
        (F.cross_entropy(adapter.backbone(ids, mask), labels) + penalty).backward()
        for _, mine, other in pairs:
            other.grad = mine.grad.clone().view(other.shape)
        ours.step()
        theirs.step()
        adapter.on_step(step, TOTAL)
        oracle.base_model.update_and_allocate(step)
        expected = masks(oracle, pairs)
        kept = {
            f"{placed.name}.deltas.{placed.key}.diagonal": placed.delta.kept
            for placed in adapter.placed()
            if isinstance(placed.delta, Prunable)
        }
        for name, choice in expected.items():
            assert torch.equal(kept[name], choice), (step, name)
        for name, mine, other in pairs:
            torch.testing.assert_close(mine, other.view(mine.shape), atol=1e-6, rtol=0, msg=f"{step} {name}")
        kept_counts.append(sum(ranks(adapter).values()))
        changes += bool(previous) and any(not torch.equal(previous[name], kept[name]) for name in kept)
        previous = {name: choice.clone() for name, choice in kept.items()}
    assert kept_counts[0] == 6 * 6
    assert kept_counts[-1] == 6 * 3
    assert changes >= 4, "the choice must be made in several steps"
    assert len(set(ranks(adapter).values())) > 1, "the ranks must differ between places"
