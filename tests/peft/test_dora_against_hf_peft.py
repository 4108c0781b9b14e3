"""DoRA computes what HF peft computes: logits, and the gradients of A, B and the magnitude."""

from __future__ import annotations

import copy
from typing import Any

import peft
import pytest

from peftlab.peft.adapter import Adapter
from peftlab.peft.base import attach
from peftlab.peft.dora import DoRA
from tests.peft.low_rank_oracle import ALL_KINDS, EMBEDDING, FFN, NAMES, compare, paired, randomise
from tests.peft.tiny import tiny


def side_by_side(kind: str, targets: list[str], **dropout: Any) -> tuple[Adapter, Any]:
    backbone = tiny(kind)
    oracle_model = copy.deepcopy(backbone.model)
    strategy = DoRA(targets=targets, rank=4, alpha=6.0, **dropout)
    adapter = attach(backbone, strategy, seed=1, train_head=False)
    oracle = peft.get_peft_model(
        oracle_model,
        peft.LoraConfig(
            use_dora=True,
            target_modules=targets,
            r=4,
            lora_alpha=6.0,
            lora_dropout=strategy.dropout,
            fan_in_fan_out=kind == "gpt2",
        ),
    ).eval()
    return adapter, oracle


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_logits_and_gradients(kind: str) -> None:
    adapter, oracle = side_by_side(kind, [*NAMES[kind], FFN[kind]])
    pairs = paired(adapter, oracle)
    assert sum(name.endswith("magnitude") for name, _, _ in pairs) == len(pairs) / 3
    randomise(pairs)
    compare(adapter, oracle, pairs)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_embeddings(kind: str) -> None:
    adapter, oracle = side_by_side(kind, [EMBEDDING[kind]])
    pairs = paired(adapter, oracle)
    randomise(pairs)
    compare(adapter, oracle, pairs)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "llama", "gpt2"])
def test_its_dropout_in_training(kind: str) -> None:
    """The same masks at the same places."""
    adapter, oracle = side_by_side(kind, [*NAMES[kind], FFN[kind]], dropout=0.3)
    pairs = paired(adapter, oracle)
    randomise(pairs)
    adapter.backbone.train()
    compare(adapter, oracle.train(), pairs)


def test_dropout_on_the_low_rank_path_alone_is_another_in_training_and_the_same_in_evaluation() -> None:
    adapter, oracle = side_by_side("bert", [*NAMES["bert"], FFN["bert"]], dropout=0.3, dropout_mode="low_rank")
    pairs = paired(adapter, oracle)
    randomise(pairs)
    compare(adapter, oracle, pairs)
    adapter.backbone.train()
    oracle.train()
    with pytest.raises(AssertionError, match="not close"):
        compare(adapter, oracle, pairs)
