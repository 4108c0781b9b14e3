"""Prompt tuning, P-tuning and multitask prompts compute what HF peft computes: logits and adapter gradients.

HF peft puts the prompt in front of the text, so ``position=before``. Its decoders classify a padded batch from
the wrong token when they are given vectors, so decoders are compared on batches without padding.
"""

from __future__ import annotations

import copy
from typing import Any

import peft
import pytest
import torch
from torch.nn import functional as F

from peftlab.peft.base import attach
from peftlab.peft.multitask_prompt import MultitaskPrompt
from peftlab.peft.p_tuning import PTuning
from peftlab.peft.prompt_tuning import PromptTuning
from peftlab.peft.soft_prompt import PromptAdapter, SoftPrompt
from tests.backbones.tiny_backbones import shake
from tests.peft.tiny import KINDS, batch, tiny

DECODERS = {"gpt2", "llama"}
N = 5


def _variants() -> dict[str, tuple[SoftPrompt, Any, dict[str, Any]]]:
    """Our method, HF peft's config, and what HF peft needs at every call."""
    sizes = {"token_dim": 32, "num_layers": 2, "num_attention_heads": 4}  # it cannot read them off DistilBERT
    common = {"task_type": "SEQ_CLS", "num_virtual_tokens": N, **sizes}
    return {
        "prompt": (PromptTuning(length=N, position="before"), peft.PromptTuningConfig(**common), {}),
        "mlp": (
            PTuning(length=N, position="before", hidden=12),
            peft.PromptEncoderConfig(**common, encoder_hidden_size=12, encoder_reparameterization_type="MLP"),
            {},
        ),
        "lstm": (
            PTuning(length=N, position="before", encoder="lstm", hidden=12, layers=2),
            peft.PromptEncoderConfig(
                **common, encoder_hidden_size=12, encoder_reparameterization_type="LSTM", encoder_num_layers=2
            ),
            {},
        ),
        "multitask": (
            MultitaskPrompt(length=N, position="before", num_tasks=3, rank=2, task=1),
            peft.MultitaskPromptTuningConfig(**common, num_tasks=3, num_ranks=2),
            {"task_ids": torch.ones(4, dtype=torch.long)},
        ),
    }


THEIR_NAMES = {"prompt_embeddings": "embedding.weight", "embedding": "embedding.weight"}


@pytest.mark.parametrize("variant", ["prompt", "mlp", "lstm", "multitask"])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_gradients(kind: str, variant: str) -> None:
    method, config, extra = _variants()[variant]
    backbone = tiny(kind)
    shake(backbone)
    before = copy.deepcopy(backbone)
    oracle = peft.get_peft_model(copy.deepcopy(backbone.model), config).eval()
    adapter = attach(backbone, method, seed=1, train_head=False)
    assert isinstance(adapter, PromptAdapter)
    pairs = _paired(adapter.vectors, oracle.prompt_encoder["default"])
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for mine, other in pairs:
            mine.normal_(generator=generator)
            other.copy_(mine)

    ids, mask = batch()
    if kind in DECODERS:
        ids, mask = ids[:, :9], mask[:, :9]
        assert mask.all()
    labels = torch.tensor([0, 1, 2, 1])
    logits = backbone(ids, mask)
    expected = oracle(input_ids=ids, attention_mask=mask, **extra).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    assert (logits - before(ids, mask)).abs().max() > 1e-2, "the prompt must matter"
    F.cross_entropy(logits, labels).backward()
    F.cross_entropy(expected, labels).backward()
    for mine, other in pairs:
        assert mine.grad is not None
        assert other.grad is not None
        assert mine.grad.abs().max() > 0
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-5, rtol=0)


def _paired(ours: torch.nn.Module, oracle: torch.nn.Module) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(our tensor, HF peft's tensor) for every tensor of either side."""
    theirs = dict(oracle.named_parameters())
    pairs = []
    for name, mine in ours.named_parameters():
        other = THEIR_NAMES.get(name, name.replace("lstm.", "lstm_head.").replace("mlp.", "mlp_head."))
        pairs.append((mine, theirs.pop(other)))
    assert not theirs, f"HF peft has tensors that we do not: {theirs.keys()}"
    return pairs


@pytest.mark.parametrize("variant", ["prompt", "mlp", "lstm", "multitask"])
def test_the_compact_prompt_is_what_hf_peft_saves(variant: str) -> None:
    method, config, _ = _variants()[variant]
    backbone = tiny("bert")
    oracle = peft.get_peft_model(copy.deepcopy(backbone.model), config).eval()
    adapter = attach(backbone, method, seed=1)
    assert isinstance(adapter, PromptAdapter)
    with torch.no_grad():
        for mine, other in _paired(adapter.vectors, oracle.prompt_encoder["default"]):
            other.copy_(mine)
    saved = {k: v for k, v in peft.get_peft_model_state_dict(oracle).items() if "classifier" not in k}
    ours = adapter.inference_prompt()
    assert ours.keys() == saved.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, saved[name], atol=1e-6, rtol=0)
