"""LN-tuning: which layers, counts, and what is refused."""

from __future__ import annotations

import pytest

from peftlab.backbones.text_classifier import TextClassifierConfig
from peftlab.errors import PeftlabError
from peftlab.peft.base import attach
from peftlab.peft.layernorm import LayerNormTuning
from tests.peft.published import trainable
from tests.peft.tiny import tiny


def trained(kind: str, **fields: object) -> list[str]:
    backbone = tiny(kind)
    attach(backbone, LayerNormTuning(**fields), seed=0, train_head=False)  # type: ignore[arg-type]
    return [name for name, p in backbone.model.named_parameters() if p.requires_grad]


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("bert-base", (12 * 2 + 1) * 2 * 768),  # two a block, one behind the embedding
        ("gpt2-medium", (24 * 2 + 1) * 2 * 1024),  # two a block, one behind the last
        ("llama-7b", (32 * 2 + 1) * 4096),  # RMSNorm has no bias
        ("t0-11b", (24 * 2 + 1 + 24 * 3 + 1) * 4096),  # the decoder has a third one a block
    ],
)
def test_counts_by_hand(name: str, count: int) -> None:
    assert trainable(LayerNormTuning(), name) == count


def test_the_fields_choose() -> None:
    assert len(trained("bert")) == 2 * (2 * 2 + 1)
    assert len(trained("bert", biases=False)) == 2 * 2 + 1
    assert all(name.endswith("weight") for name in trained("bert", biases=False))
    assert len(trained("bert", targets=["attention.output.LayerNorm"])) == 2 * 2
    assert all("layer.1." in name for name in trained("bert", targets=[r".*layer\.1\..*"]))


def test_norms_of_queries_and_keys_train_too() -> None:
    assert {"q_norm", "k_norm", "input_layernorm", "post_attention_layernorm", "norm"} == {
        name.split(".")[-2] for name in trained("qwen3")
    }


def test_the_norm_of_a_head_is_the_heads() -> None:
    """ModernBERT's head has one; it trains with the head, and does not count here."""
    assert not any(name.startswith("head.") for name in trained("modernbert"))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"targets": ["LayerNrom"]}, r"'LayerNrom' matches none.*Did you mean 'LayerNorm'\?.*layer\.\*\.output"),
        ({"targets": ["query"]}, "'query' matches none of the normalisation layers"),
    ],
)
def test_wrong_uses(fields: dict[str, object], said: str) -> None:
    with pytest.raises(PeftlabError, match=said):
        attach(tiny("bert"), LayerNormTuning(**fields), seed=0)  # type: ignore[arg-type]


def test_a_model_without_norms_is_refused() -> None:
    backbone = TextClassifierConfig().build(2, seed=0, train_texts=["a b c"])
    with pytest.raises(PeftlabError, match="text_classifier has no normalisation layer"):
        attach(backbone, LayerNormTuning(), seed=0)


def test_an_empty_list_is_refused() -> None:
    with pytest.raises(ValueError, match=r"peft\.targets is empty"):
        LayerNormTuning(targets=[])
