"""LoRA computes what HF peft computes: logits and every trained tensor's gradient, with copied weights."""

from __future__ import annotations

import copy
from typing import Any

import peft
import pytest
import torch

from peftlab.peft.adapter import Adapter
from peftlab.peft.base import attach
from peftlab.peft.lora import LoRA
from tests.peft.low_rank_oracle import ALL_KINDS, EMBEDDING, FFN, NAMES, compare, paired, randomise
from tests.peft.tiny import batch, tiny

Fields = dict[str, Any]


def variant(kind: str, which: str) -> tuple[Fields, Fields]:
    """Our fields and HF peft's for the same thing."""
    names, ffn = NAMES[kind], FFN[kind]
    ours: Fields = {"targets": names, "rank": 4, "alpha": 6.0}
    theirs: Fields = {"target_modules": names, "r": 4, "lora_alpha": 6.0}
    if which == "rslora":
        return {**ours, "rank_stabilized": True}, {**theirs, "use_rslora": True}
    if which == "patterns":
        patterns: Fields = {"rank_pattern": {ffn: 2}, "alpha_pattern": {ffn: 10.0}}
        return {**ours, "targets": [*names, ffn], **patterns}, {**theirs, "target_modules": [*names, ffn], **patterns}
    if which == "embedding":
        both = [*names, EMBEDDING[kind]]
        return {**ours, "targets": both}, {**theirs, "target_modules": both}
    if which.startswith("bias"):
        bias = which.partition("=")[2]
        return {**ours, "bias": bias}, {**theirs, "bias": bias}
    return ours, theirs


def side_by_side(kind: str, ours: Fields, theirs: Fields) -> tuple[Adapter, Any]:
    backbone = tiny(kind)
    oracle_model = copy.deepcopy(backbone.model)
    adapter = attach(backbone, LoRA(**ours), seed=1, train_head=False)
    oracle = peft.get_peft_model(
        oracle_model,
        peft.LoraConfig(**theirs, fan_in_fan_out=kind == "gpt2", lora_dropout=0.0),
    ).eval()
    return adapter, oracle


@pytest.mark.parametrize("which", ["plain", "rslora", "patterns", "embedding"])
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_logits_and_gradients(kind: str, which: str) -> None:
    adapter, oracle = side_by_side(kind, *variant(kind, which))
    pairs = paired(adapter, oracle)
    randomise(pairs)
    compare(adapter, oracle, pairs)


@pytest.mark.parametrize("which", ["bias=all", "bias=lora_only"])
@pytest.mark.parametrize("kind", [kind for kind in ALL_KINDS if kind not in ("llama", "modernbert")])
def test_the_same_biases_train(kind: str, which: str) -> None:
    """Llama and ModernBERT have none."""
    adapter, oracle = side_by_side(kind, *variant(kind, which))
    pairs = paired(adapter, oracle)
    assert any(name.endswith("bias") for name, _, _ in pairs)
    randomise(pairs)
    compare(adapter, oracle, pairs)


@pytest.mark.parametrize(
    ("kind", "init"),
    [("bert", "pissa"), ("gpt2", "pissa"), ("llama", "pissa"), ("bert", "olora"), ("llama", "olora")],
)
def test_it_is_the_same_model_with_another_bookkeeping(kind: str, init: str) -> None:
    """HF peft writes the residual into the weight, we subtract the start. (Of a Conv1D it takes the QR of Wᵀ.)"""
    ours, theirs = variant(kind, "plain")
    adapter, oracle = side_by_side(kind, {**ours, "init": init}, {**theirs, "init_lora_weights": init})
    pairs = paired(adapter, oracle)
    ids, mask = batch()
    torch.testing.assert_close(adapter.backbone(ids, mask), tiny(kind)(ids, mask), atol=0, rtol=0)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, mine, other in pairs:
            # The product is unique, the factors' signs are not.
            torch.testing.assert_close(mine.abs(), other.abs(), atol=1e-4, rtol=1e-3, msg=name)
            mine.copy_(mine * torch.sign(mine * other) + 0.3 * torch.randn(mine.shape, generator=generator))
            other.copy_(mine)
    compare(adapter, oracle, pairs)
