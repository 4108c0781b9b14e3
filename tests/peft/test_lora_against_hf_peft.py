"""LoRA computes what HF peft computes: logits and every adapter gradient, with copied weights."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from torch.nn import functional as F

from peftlab.peft.base import apply
from peftlab.peft.lora import LoRA
from tests.peft.tiny import KINDS, batch, tiny

NAMES = {  # what HF peft calls the query and value projections
    "bert": ["query", "value"],
    "roberta": ["query", "value"],
    "distilbert": ["q_lin", "v_lin"],
    "gpt2": ["c_attn"],
    "llama": ["q_proj", "v_proj"],
}
FFN = {
    "bert": "intermediate.dense",
    "roberta": "intermediate.dense",
    "distilbert": "ffn.lin1",
    "gpt2": "mlp.c_fc",
    "llama": "mlp.up_proj",
}


def variants(kind: str) -> dict[str, tuple[dict[str, object], dict[str, object]]]:
    """Our fields and HF peft's for the same thing."""
    names, ffn = NAMES[kind], FFN[kind]
    plain = {"targets": names, "rank": 4, "alpha": 6.0}
    theirs = {"target_modules": names, "r": 4, "lora_alpha": 6.0}
    return {
        "plain": (plain, theirs),
        "rslora": ({**plain, "rank_stabilized": True}, {**theirs, "use_rslora": True}),
        "patterns": (
            {**plain, "targets": [*names, ffn], "rank_pattern": {ffn: 2}, "alpha_pattern": {ffn: 10.0}},
            {
                **theirs,
                "target_modules": [*names, ffn],
                "rank_pattern": {ffn: 2},
                "alpha_pattern": {ffn: 10.0},
            },
        ),
    }


@pytest.mark.parametrize("variant", ["plain", "rslora", "patterns"])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_gradients(kind: str, variant: str) -> None:
    ours, theirs = variants(kind)[variant]
    backbone = tiny(kind)
    oracle_model = copy.deepcopy(backbone.model)
    apply(LoRA(**ours), backbone, seed=1, train_head=False)  # type: ignore[arg-type]
    oracle = peft.get_peft_model(
        oracle_model,
        peft.LoraConfig(**theirs, fan_in_fan_out=kind == "gpt2", lora_dropout=0.0),  # type: ignore[arg-type]
    ).eval()
    pairs = _paired(backbone, oracle)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for mine, other in pairs:
            mine.normal_(generator=generator)
            other.copy_(mine)

    ids, mask = batch()
    labels = torch.tensor([0, 1, 2, 1])
    logits = backbone(ids, mask)
    expected = oracle(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    assert not torch.allclose(logits, _without_adapter(oracle, ids, mask), atol=1e-3), "the adapter must matter"
    F.cross_entropy(logits, labels).backward()
    F.cross_entropy(expected, labels).backward()
    for mine, other in pairs:
        assert mine.grad is not None
        assert other.grad is not None
        assert mine.grad.abs().max() > 0
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-5, rtol=0)


def _paired(backbone, oracle) -> list[tuple[torch.nn.Parameter, torch.nn.Parameter]]:  # type: ignore[no-untyped-def]
    """(our tensor, HF peft's tensor) for every adapter tensor of either side."""
    theirs = {n: p for n, p in oracle.named_parameters() if p.requires_grad}
    pairs = []
    for name, mine in backbone.model.named_parameters():
        if mine.requires_grad:
            place, letter = name.split(".updates.all.")
            pairs.append((mine, theirs.pop(f"base_model.model.{place}.lora_{letter}.default.weight")))
    assert not theirs, "HF peft adapts places that we do not"
    assert pairs
    return pairs


def _without_adapter(oracle, ids, mask) -> torch.Tensor:  # type: ignore[no-untyped-def]
    with oracle.disable_adapter(), torch.no_grad():
        return oracle(input_ids=ids, attention_mask=mask).logits
