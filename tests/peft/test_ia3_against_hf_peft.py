"""(IA)³ computes what HF peft computes: logits and every gradient, with copied weights."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from torch.nn import functional as F

from peftlab.peft.base import attach
from peftlab.peft.ia3 import IA3
from tests.peft.tiny import KINDS, batch, tiny

NAMES = {  # key, value and the narrowing layer, as the architectures call them
    "bert": (["key", "value"], r"layer\.\d+\.output\.dense"),
    "roberta": (["key", "value"], r"layer\.\d+\.output\.dense"),
    "distilbert": (["k_lin", "v_lin"], r"ffn\.lin2"),
    "gpt2": (["c_attn"], r"mlp\.c_proj"),
    "llama": (["k_proj", "v_proj"], r"mlp\.down_proj"),
}


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_gradients(kind: str, padded: bool) -> None:
    outputs, narrowing = NAMES[kind]
    backbone = tiny(kind)
    oracle_model = copy.deepcopy(backbone.model)
    targets = outputs if kind == "gpt2" else ["key", "value"]  # GPT-2: all of c_attn, which HF peft cannot slice
    adapter = attach(backbone, IA3(targets=targets), seed=0, train_head=False)
    modules = rf".*({narrowing}|{'|'.join(outputs)})"
    config = peft.IA3Config(target_modules=modules, feedforward_modules=f".*{narrowing}", fan_in_fan_out=kind == "gpt2")
    oracle = peft.get_peft_model(oracle_model, config).eval()
    theirs = {
        n.removeprefix("base_model.model.").removesuffix(".ia3_l.default"): p
        for n, p in oracle.named_parameters()
        if p.requires_grad
    }
    ours = {
        n.removesuffix(".deltas.all.scale").removesuffix(".deltas.input.scale"): p
        for n, p in adapter.named_parameters()
    }
    assert len(ours) == sum(p.requires_grad for p in backbone.parameters())
    assert ours.keys() == theirs.keys()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, mine in ours.items():
            mine.normal_(generator=generator)
            theirs[name].copy_(mine.view_as(theirs[name]))
    ids, mask = batch()
    if not padded:
        mask = torch.ones_like(mask)
    logits, expected = backbone(ids, mask), oracle(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    with oracle.disable_adapter(), torch.no_grad():
        untouched = oracle(input_ids=ids, attention_mask=mask).logits
    assert not torch.allclose(logits, untouched, atol=1e-4), "the scales must matter"
    labels = torch.tensor([0, 1, 2, 1])
    F.cross_entropy(logits, labels).backward()
    F.cross_entropy(expected, labels).backward()
    for name, mine in ours.items():
        assert mine.grad is not None
        assert mine.grad.abs().max() > 0
        torch.testing.assert_close(mine.grad, theirs[name].grad.view_as(mine), atol=1e-5, rtol=0)
