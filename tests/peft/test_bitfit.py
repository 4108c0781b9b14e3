"""BitFit: the papers' counts, which biases, and what is refused."""

from __future__ import annotations

import pytest
import torch

from peftlab.errors import PeftlabError
from peftlab.peft.base import attach
from peftlab.peft.bitfit import BitFit
from tests.peft.published import trainable
from tests.peft.tiny import batch, tiny


def trained(kind: str, **fields: object) -> set[str]:
    backbone = tiny(kind)
    attach(backbone, BitFit(**fields), seed=0, train_head=False)  # type: ignore[arg-type]
    return {name for name, p in backbone.model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("name", "count"),
    [
        # BitFit paper: 0.09 % and 0.08 %. The pooler's bias counts; it stands inside BERT's trunk.
        ("bert-base", 102_912),
        ("bert-large", 272_384),
        # LoRA paper, table 2: "0.1M". RoBERTa's classifier has no pooler; its dense layer is head.
        ("roberta-base", 102_144),
    ],
)
def test_published_counts(name: str, count: int) -> None:
    assert trainable(BitFit(), name) == count


def test_all_biases_of_the_trunk_and_nothing_else() -> None:
    names = trained("bert")
    backbone = tiny("bert")
    head = {name for name, _ in backbone.head_parameters()}
    every = {name for name, _ in backbone.model.named_parameters()}
    assert names == {name for name in every - head if name.endswith("bias")}
    assert "bert.pooler.dense.bias" in names
    assert "classifier.bias" not in names


def test_the_weights_stay_and_the_biases_move() -> None:
    backbone = tiny("gpt2")
    before = {name: p.clone() for name, p in backbone.model.named_parameters()}
    attach(backbone, BitFit(), seed=0, train_head=False)
    ids, mask = batch()
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(backbone(ids, mask), torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()
    changed = {name for name, p in backbone.model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if name.endswith("bias")}


@pytest.mark.parametrize(
    ("targets", "endings"),
    [
        (["query", "ffn_up"], {"attention.self.query.bias", "intermediate.dense.bias"}),
        (["LayerNorm"], {"attention.output.LayerNorm.bias", "output.LayerNorm.bias", "embeddings.LayerNorm.bias"}),
        ([r".*\.layer\.1\.attention\.self\.key\.bias"], {"layer.1.attention.self.key.bias"}),
    ],
)
def test_targets_by_role_module_and_regex(targets: list[str], endings: set[str]) -> None:
    names = trained("bert", targets=targets)
    assert names
    assert all(any(name.endswith(ending) for ending in endings) for name in names)
    assert all(any(name.endswith(ending) for name in names) for ending in endings)


def test_deberta_has_biases_of_another_name() -> None:
    """Query and value biases are bare parameters there, q_bias and v_bias."""
    assert {name.rpartition(".")[2] for name in trained("deberta")} == {"bias", "q_bias", "v_bias"}


@pytest.mark.parametrize(
    ("kind", "fields", "said"),
    [
        ("llama", {}, "llama has no bias term"),
        ("gpt2", {"targets": ["query"]}, r"Name it instead: peft\.targets=\['c_attn'\]"),
        ("qwen2", {"targets": ["ffn_up"]}, "role 'ffn_up' of this qwen2 has no bias"),
        ("bert", {"targets": ["qurey"]}, r"'qurey' matches none of the biases.*encoder\.layer\.\*\.attention"),
        ("bert", {"targets": ["ffn_gate"]}, "a role that bert does not have"),
        ("bert", {"targets": ["("]}, "not a regular expression"),
    ],
)
def test_wrong_uses(kind: str, fields: dict[str, object], said: str) -> None:
    with pytest.raises(PeftlabError, match=said):
        attach(tiny(kind), BitFit(**fields), seed=0)  # type: ignore[arg-type]


def test_an_empty_list_is_refused() -> None:
    with pytest.raises(ValueError, match=r"peft\.targets is empty"):
        BitFit(targets=[])
