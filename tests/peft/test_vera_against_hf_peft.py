"""VeRA computes what HF peft computes: logits and every gradient, with copied weights and matrices."""

from __future__ import annotations

import copy
from typing import Any

import peft
import pytest
import torch
from torch.nn import functional as F

from peftlab.peft.base import attach
from peftlab.peft.vera import VeRA
from tests.peft.tiny import KINDS, batch, tiny

NAMES = {  # two projections, and a feed-forward layer of another shape
    "bert": ["query", "value", "intermediate.dense"],
    "roberta": ["query", "value", "intermediate.dense"],
    "distilbert": ["q_lin", "v_lin", "ffn.lin1"],
    "gpt2": ["c_attn", "mlp.c_fc"],
    "llama": ["q_proj", "v_proj", "mlp.down_proj"],
}


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_gradients(kind: str, padded: bool) -> None:
    backbone = tiny(kind)
    oracle_model = copy.deepcopy(backbone.model)
    adapter = attach(backbone, VeRA(rank=12, targets=NAMES[kind], d_initial=0.3), seed=0, train_head=False)
    config = peft.VeraConfig(
        r=12, target_modules=NAMES[kind], d_initial=0.3, vera_dropout=0.0, fan_in_fan_out=kind == "gpt2"
    )
    oracle = peft.get_peft_model(oracle_model, config).eval()
    projection: Any = adapter.modules()["vera_projection"]
    shared_A, shared_B = oracle.base_model.vera_A["default"], oracle.base_model.vera_B["default"]
    assert projection.A.shape == shared_A.shape
    assert projection.B.shape == shared_B.shape
    theirs = {
        n.removeprefix("base_model.model.").replace(".vera_lambda_", ".deltas.all.").removesuffix(".default"): p
        for n, p in oracle.named_parameters()
        if p.requires_grad
    }
    ours = dict(adapter.named_parameters())
    assert len(ours) == sum(p.requires_grad for p in backbone.parameters())
    assert ours.keys() == theirs.keys()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        shared_A.copy_(projection.A)
        shared_B.copy_(projection.B)
        for name, mine in ours.items():
            torch.testing.assert_close(mine, theirs[name], msg="both start alike")
            mine.normal_(generator=generator)
            theirs[name].copy_(mine)
    ids, mask = batch()
    if not padded:
        mask = torch.ones_like(mask)
    logits, expected = backbone(ids, mask), oracle(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    with oracle.disable_adapter(), torch.no_grad():
        untouched = oracle(input_ids=ids, attention_mask=mask).logits
    assert not torch.allclose(logits, untouched, atol=1e-3), "the adapter must matter"
    labels = torch.tensor([0, 1, 2, 1])
    F.cross_entropy(logits, labels).backward()
    F.cross_entropy(expected, labels).backward()
    for name, mine in ours.items():
        assert mine.grad is not None
        assert mine.grad.abs().max() > 0
        torch.testing.assert_close(mine.grad, theirs[name].grad, atol=1e-5, rtol=0)
