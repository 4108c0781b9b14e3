"""LN-tuning computes what HF peft computes: logits and every gradient, with copied weights."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from torch.nn import functional as F

from peftlab.peft.base import attach
from peftlab.peft.layernorm import LayerNormTuning
from tests.peft.tiny import batch, tiny

NORMS = {
    "bert": ["LayerNorm"],
    "roberta": ["LayerNorm"],
    "distilbert": ["LayerNorm", "sa_layer_norm", "output_layer_norm"],
    "gpt2": ["ln_1", "ln_2", "ln_f"],
}


@pytest.mark.filterwarnings("ignore:Unsupported layer type.*LayerNorm:UserWarning")  # HF peft's own advice
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("kind", NORMS)
def test_logits_and_gradients(kind: str, padded: bool) -> None:
    backbone = tiny(kind)
    oracle_model = copy.deepcopy(backbone.model)
    attach(backbone, LayerNormTuning(), seed=0, train_head=False)
    oracle = peft.get_peft_model(oracle_model, peft.LNTuningConfig(target_modules=NORMS[kind])).eval()
    theirs = {
        name.removeprefix("base_model.model.").replace(".ln_tuning_layers.default", ""): p
        for name, p in oracle.named_parameters()
        if p.requires_grad
    }
    ours = {name: p for name, p in backbone.model.named_parameters() if p.requires_grad}
    assert ours.keys() == theirs.keys()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, mine in ours.items():
            mine.normal_(generator=generator)
            theirs[name].copy_(mine)
    ids, mask = batch()
    if not padded:
        mask = torch.ones_like(mask)
    logits, expected = backbone(ids, mask), oracle(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    with oracle.disable_adapter(), torch.no_grad():
        untouched = oracle(input_ids=ids, attention_mask=mask).logits
    assert not torch.allclose(logits, untouched, atol=1e-3), "what trains must matter"
    labels = torch.tensor([0, 1, 2, 1])
    F.cross_entropy(logits, labels).backward()
    F.cross_entropy(expected, labels).backward()
    for name, mine in ours.items():
        assert mine.grad is not None
        assert mine.grad.abs().max() > 0
        torch.testing.assert_close(mine.grad, theirs[name].grad, atol=1e-5, rtol=0)
