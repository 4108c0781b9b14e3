"""Parameters chosen by name: what the default means, and what is refused."""

from __future__ import annotations

import pytest

from peftlab.errors import PeftlabError
from peftlab.peft.base import attach
from peftlab.peft.bitfit import BitFit
from peftlab.peft.parameters import NamedParameters
from tests.backbones.tiny_backbones import ARCHITECTURES
from tests.peft.tiny import tiny


def trained(kind: str, patterns: list[str] | None = None, **more: object) -> set[str]:
    backbone = tiny(kind, **more)
    strategy = NamedParameters() if patterns is None else NamedParameters(patterns=patterns)
    return set(attach(backbone, strategy, seed=0, train_head=False).tensors())


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_default_is_attention_in_every_architecture(kind: str) -> None:
    names = trained(kind)
    endings = ("q", "k", "v", "o", "query", "key", "value", "dense", "q_lin", "c_attn", "c_proj", "q_proj", "Wqkv",
               "Wo", "query_proj", "in_proj", "query_key_value", "qkv_proj", "o_proj", "rel_attn")  # fmt: skip
    owners = {name.split(".")[-2] for name in names}
    assert owners & set(endings)
    assert not any(word in name for name in names for word in ("mlp", "ffn", "intermediate", "word_embeddings"))


def test_patterns_are_whole_names_or_ends_of_names() -> None:
    assert trained("bert", ["query.weight"]) == {
        f"bert.encoder.layer.{index}.attention.self.query.weight" for index in range(2)
    }
    assert trained("bert", [r".*layer\.0.*query\.bias", "pooler.dense.weight"]) == {
        "bert.encoder.layer.0.attention.self.query.bias",
        "bert.pooler.dense.weight",
    }
    biases = tiny("roberta")
    attach(biases, BitFit(), seed=0, train_head=False)
    assert trained("roberta", [".*bias"]) == {n for n, p in biases.model.named_parameters() if p.requires_grad}


def test_on_a_quantised_backbone_floats_train_and_packed_weights_are_refused() -> None:
    assert "bert.embeddings.LayerNorm.weight" in trained("bert", ["LayerNorm.weight", ".*bias"], quantize="nf4")
    with pytest.raises(PeftlabError, match=r"layer\.0\.attention\.self\.query\.weight' is stored in nf4"):
        trained("bert", quantize="nf4")


@pytest.mark.parametrize(
    ("patterns", "said"),
    [
        (
            ["quary.weight"],
            r"'quary\.weight' matches none.*There are.*layer\.\*\.attention\.self\.query\.weight",
        ),
        (["query.weight", "classifier.weight"], r"'classifier\.weight' matches none of the .* outside the head"),
        (["*bias"], "not a regular expression"),
    ],
)
def test_wrong_uses(patterns: list[str], said: str) -> None:
    with pytest.raises(PeftlabError, match=said):
        trained("bert", patterns)


def test_an_empty_list_is_refused() -> None:
    with pytest.raises(ValueError, match=r"peft\.patterns is empty"):
        NamedParameters(patterns=[])
