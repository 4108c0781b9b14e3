"""Prefix tuning and P-tuning v2 compute what HF peft computes: logits and adapter gradients, with copied weights.

HF peft hands its prefix over as a cache, so that the model counts the text's positions from n on. Ours start from 0.
The reference below is HF peft's own prefix in a cache of the plain model, with the positions given as
0 … T-1: absolute positions are then those of the text, and rotary queries are turned as far against the (unturned)
prefix as ours.
"""

from __future__ import annotations

import copy
from typing import Any

import peft
import pytest
import torch
from torch.nn import functional as F

from peftlab.peft.base import attach
from peftlab.peft.key_value_prefix import KeyValuePrefix, PrefixAdapter
from peftlab.peft.p_tuning_v2 import PTuningV2
from peftlab.peft.prefix_tuning import PrefixTuning
from tests.backbones.tiny_backbones import shake, tiny
from tests.peft.tiny import batch

N = 5
TRUNKS = {"bert": "bert", "roberta": "roberta", "electra": "electra", "gpt2": "transformer", "llama": "model"}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("method", [PTuningV2(length=N), PrefixTuning(length=N, hidden=12)], ids=["direct", "network"])
@pytest.mark.parametrize("kind", TRUNKS)
def test_logits_and_gradients(kind: str, method: KeyValuePrefix, attention: str) -> None:
    backbone = tiny(kind, attention=attention)
    shake(backbone)
    before = copy.deepcopy(backbone)
    oracle = _oracle(copy.deepcopy(backbone.model), method)
    adapter = attach(backbone, method, seed=1, train_head=False)
    assert isinstance(adapter, PrefixAdapter)
    pairs = _paired(adapter.prefix, oracle.prompt_encoder["default"])
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for mine, other in pairs:
            mine.normal_(generator=generator)
            other.copy_(mine)

    ids, mask = batch()
    ids = ids * mask  # padding is the id 0
    labels = torch.tensor([0, 1, 2, 1])
    logits = backbone(ids, mask)
    expected = _reference(kind, oracle, ids, mask)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    assert (logits - before(ids, mask)).abs().max() > 1e-2, "the prefix must matter"
    F.cross_entropy(logits, labels).backward()
    F.cross_entropy(expected, labels).backward()
    for mine, other in pairs:
        assert mine.grad is not None
        assert other.grad is not None
        assert mine.grad.abs().max() > 0
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-5, rtol=0)


def _oracle(model: Any, method: KeyValuePrefix) -> Any:
    config = peft.PrefixTuningConfig(
        task_type="SEQ_CLS",
        num_virtual_tokens=N,
        prefix_projection=method.reparameterize,
        encoder_hidden_size=method.hidden,
    )
    return peft.get_peft_model(model, config).eval()


def _reference(kind: str, oracle: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    model = oracle.get_base_model()
    positions = torch.arange(ids.shape[1])
    if kind == "roberta":  # its positions begin behind the padding id
        positions = positions + model.config.pad_token_id + 1
    outputs = model.get_submodule(TRUNKS[kind])(
        input_ids=ids,
        attention_mask=F.pad(mask, (N, 0), value=1),
        position_ids=positions.expand(len(ids), -1),
        past_key_values=oracle.get_prompt(len(ids)),
        use_cache=True,
    )
    hidden = outputs.last_hidden_state
    if kind in ("gpt2", "llama"):
        return model.score(hidden[torch.arange(len(ids)), mask.sum(dim=1) - 1])
    return model.classifier(outputs.pooler_output if kind == "bert" else hidden)


def _paired(ours: torch.nn.Module, oracle: torch.nn.Module) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(our tensor, HF peft's tensor) for every tensor of either side."""
    theirs = dict(oracle.named_parameters())
    names = {"embedding": "embedding.weight"}
    pairs = [
        (mine, theirs.pop(names.get(name, name.replace("network.", "transform."))))
        for name, mine in ours.named_parameters()
    ]
    assert not theirs, f"HF peft has tensors that we do not: {theirs.keys()}"
    return pairs


@pytest.mark.parametrize("method", [PTuningV2(length=N), PrefixTuning(length=N, hidden=12)], ids=["direct", "network"])
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_the_compact_prefix_is_what_hf_peft_saves(kind: str, method: KeyValuePrefix) -> None:
    backbone = tiny(kind)
    oracle = _oracle(copy.deepcopy(backbone.model), method)
    adapter = attach(backbone, method, seed=1)
    assert isinstance(adapter, PrefixAdapter)
    with torch.no_grad():
        for mine, other in _paired(adapter.prefix, oracle.prompt_encoder["default"]):
            other.copy_(mine)
    saved = peft.get_peft_model_state_dict(oracle)["prompt_embeddings"]
    ours = adapter.inference_prompt()
    assert ours.keys() == {"prompt_embeddings"}
    torch.testing.assert_close(ours["prompt_embeddings"], saved, atol=1e-6, rtol=0)
