"""HF peft's low-rank methods beside ours: which module is called what, and which tensor is which."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional as F

from peftlab.peft.adapter import Adapter
from tests.peft.tiny import KINDS, batch

ALL_KINDS = (*KINDS, "deberta-v2", "modernbert")
NAMES = {  # the query and value projections, or what they are fused into
    "bert": ["query", "value"],
    "roberta": ["query", "value"],
    "distilbert": ["q_lin", "v_lin"],
    "deberta-v2": ["query_proj", "value_proj"],
    "modernbert": ["attn.Wqkv"],
    "gpt2": ["c_attn"],
    "llama": ["q_proj", "v_proj"],
}
FFN = {
    "bert": "intermediate.dense",
    "roberta": "intermediate.dense",
    "distilbert": "ffn.lin1",
    "deberta-v2": "intermediate.dense",
    "modernbert": "mlp.Wi",
    "gpt2": "mlp.c_fc",
    "llama": "mlp.up_proj",
}
EMBEDDING = {
    "bert": "word_embeddings",
    "roberta": "word_embeddings",
    "distilbert": "word_embeddings",
    "deberta-v2": "word_embeddings",
    "modernbert": "tok_embeddings",
    "gpt2": "wte",
    "llama": "embed_tokens",
}
LABELS = torch.tensor([0, 1, 2, 1])
Pairs = list[tuple[str, torch.nn.Parameter, torch.nn.Parameter]]


def paired(adapter: Adapter, oracle: Any) -> Pairs:
    """(our name, our tensor, HF peft's) for everything that trains on either side outside the head."""
    theirs = {n.removeprefix("base_model.model."): p for n, p in oracle.named_parameters() if p.requires_grad}
    head = {name for name, _ in adapter.backbone.head_parameters()}
    layers = {placed.name for placed in adapter.placed()}
    pairs = []
    for name, mine in adapter.named_parameters():
        found = [other for other in _their_names(name, layers) if other in theirs]
        assert len(found) == 1, f"{name}: HF peft trains {sorted(theirs)}"
        pairs.append((name, mine, theirs.pop(found[0])))
    ours = {id(mine) for _, mine, _ in pairs}
    others = [n for n, p in adapter.model.named_parameters() if p.requires_grad and id(p) not in ours]
    assert set(others) <= head, "more trains than the adapter owns"
    assert not theirs.keys() - head, "HF peft trains more than we do"
    assert pairs
    return pairs


def _their_names(name: str, layers: set[str]) -> Iterator[str]:
    place, inside, letter = name.partition(".deltas.all.")
    if not inside:  # a bias of the backbone
        place, _, bias = name.rpartition(".")
        yield f"{place}.base_layer.{bias}" if place in layers else name
        return
    if letter == "magnitude":
        yield f"{place}.lora_magnitude_vector.default.weight"
        return
    letter = {"diagonal": "E"}.get(letter, letter.removeprefix("lora_"))
    yield f"{place}.lora_{letter}.default.weight"
    yield f"{place}.lora_{letter}.default"
    yield f"{place}.lora_embedding_{letter}.default"


def randomise(pairs: Pairs, std: float = 1.0) -> None:
    """Give both sides the same random values; a tensor that starts far from zero is only disturbed."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, mine, other in pairs:
            noise = torch.randn(mine.shape, generator=generator) * std
            mine.copy_(mine * (8 + noise) if name.endswith("magnitude") else noise)
            other.copy_(mine.view(other.shape))


def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """One batch with padding and one without."""
    ids, mask = batch()
    yield ids, mask
    yield ids, torch.ones_like(mask)


def compare(adapter: Adapter, oracle: Any, pairs: Pairs) -> None:
    """Logits and the gradient of every pair agree, with padding and without."""
    backbone = adapter.backbone
    for ids, mask in batches():
        for _, mine, other in pairs:
            mine.grad = other.grad = None
        torch.manual_seed(8)  # dropout, if it is on
        logits = backbone(ids, mask)
        torch.manual_seed(8)
        expected = oracle(input_ids=ids, attention_mask=mask).logits
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.filterwarnings("ignore", "Careful, disabling adapter layers with bias")  # they stay changed
            torch.manual_seed(8)
            with oracle.disable_adapter():
                without = oracle(input_ids=ids, attention_mask=mask).logits
        assert not torch.allclose(logits, without, atol=1e-3), "the adapter must matter"
        F.cross_entropy(logits, LABELS).backward()
        F.cross_entropy(expected, LABELS).backward()
        for name, mine, other in pairs:
            assert mine.grad is not None, name
            assert other.grad is not None, name
            assert mine.grad.abs().max() > 0 or name.endswith("bias"), name
            torch.testing.assert_close(mine.grad, other.grad.view(mine.shape), atol=1e-5, rtol=0, msg=name)
