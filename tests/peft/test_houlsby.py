"""Houlsby adapters (and what every bottleneck adapter shares): places, counts, initialisation, wrong uses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from peftlab.backbones.text_classifier import TextClassifierConfig
from peftlab.errors import PeftlabError
from peftlab.peft.base import attach
from peftlab.peft.bottleneck import Bottleneck
from peftlab.peft.houlsby import Houlsby
from tests.peft.plain_adapters import behind, compare_with_plain, zero_parts
from tests.peft.published import trainable
from tests.peft.tiny import KINDS, batch, tiny

PLACES = {  # attention's output and the feed-forward's, inside a block
    "bert": ("bert.encoder.layer", "attention.output.dense", "output.dense"),
    "roberta": ("roberta.encoder.layer", "attention.output.dense", "output.dense"),
    "distilbert": ("distilbert.transformer.layer", "attention.out_lin", "ffn.lin2"),
    "gpt2": ("transformer.h", "attn.c_proj", "mlp.c_proj"),
    "llama": ("model.layers", "self_attn.o_proj", "mlp.down_proj"),
}


@pytest.mark.parametrize(
    ("fields", "name", "count"),
    [
        ({"bottleneck": 8, "reduction_factor": None}, "roberta-large", 835_968),  # LoRA paper, table 2: 0.8M
        ({"reduction_factor": 16.0}, "roberta-base", 24 * (2 * 768 * 48 + 48 + 768)),
        ({"reduction_factor": 16.0, "bias": False}, "roberta-base", 24 * 2 * 768 * 48),
    ],
)
def test_counts(fields: dict[str, Any], name: str, count: int) -> None:
    assert trainable(Houlsby(**fields), name) == count


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_against_plain_hooks(kind: str, padded: bool) -> None:
    blocks, *places = PLACES[kind]

    def hooks(model: nn.Module, weights: Any) -> None:
        for index in range(2):
            for place in places:
                name = f"{blocks}.{index}.{place}"
                behind(model.get_submodule(name), weights(f"{name}.deltas.all"), activation="gelu")

    compare_with_plain(kind, Houlsby(bottleneck=5, reduction_factor=None), hooks, padded=padded)


@pytest.mark.parametrize(
    "fields",
    [{"activation": "relu"}, {"activation": "silu"}, {"activation": "tanh"}, {"bias": False}, {"layer_norm": True}],
    ids=str,
)
def test_the_fields_do_what_they_say(fields: dict[str, Any]) -> None:
    def hooks(model: nn.Module, weights: Any) -> None:
        for index in range(2):
            name = f"bert.encoder.layer.{index}.output.dense"
            activation = fields.get("activation", "gelu")
            behind(model.get_submodule(name), weights(f"{name}.deltas.all"), activation=activation)

    strategy = Houlsby(targets=["ffn_down"], reduction_factor=8.0, **fields)
    compare_with_plain("bert", strategy, hooks, padded=True)


def test_a_slice_of_a_fused_projection_has_an_adapter_of_its_own() -> None:
    def hooks(model: nn.Module, weights: Any) -> None:
        for index in range(2):
            name = f"transformer.h.{index}.attn.c_attn"
            adapter = weights(f"{name}.deltas.value")
            behind(model.get_submodule(name), adapter, rows=slice(64, 96), activation="gelu")

    compare_with_plain("gpt2", Houlsby(targets=["value"]), hooks, padded=True)


def test_initialisation() -> None:
    """Zero: the backbone exactly. Normal: within two standard deviations of 0.01, so near it."""
    ids, mask = batch()
    before = tiny("bert")(ids, mask)
    exact = attach(tiny("bert"), Houlsby(), seed=0, train_head=False)
    near = attach(tiny("bert"), Houlsby(init="normal", reduction_factor=1.0), seed=0, train_head=False)
    assert torch.equal(exact.backbone(ids, mask), before)
    assert zero_parts(exact) == {"up", "up_bias", "down_bias"}
    assert zero_parts(near) == {"up_bias", "down_bias"}
    for name, parameter in near.named_parameters():
        if name.endswith((".down", ".up")):
            assert parameter.abs().max() <= 0.02
            assert 0.008 < parameter.std() < 0.0095  # a normal distribution cut at two deviations has 0.88 of them
    assert not torch.equal(near.backbone(ids, mask), before)
    torch.testing.assert_close(near.backbone(ids, mask), before, atol=1e-3, rtol=0)


def test_initialisation_depends_on_seed_and_place_alone() -> None:
    def down(seed: int, **fields: Any) -> list[torch.Tensor]:
        torch.manual_seed(int(torch.randint(1000, (1,))))  # whatever was drawn before
        adapter = attach(tiny("bert"), Houlsby(**fields), seed=seed)
        return [p for n, p in adapter.named_parameters() if n.endswith("output.dense.deltas.all.down")]

    first, again, other = down(0), down(0), down(1)
    alone = down(0, targets=["attention_output"])
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, other))
    assert torch.equal(alone[0], first[0])
    assert not torch.equal(first[0], first[1]), "two places start differently"


def test_the_width() -> None:
    assert Houlsby().width(768, 768) == 48
    assert Houlsby().width(8, 8) == 1, "never without any"
    assert Houlsby(reduction_factor=0.5).width(32, 32) == 64, "it may exceed the layer's"
    assert Houlsby(bottleneck=5, reduction_factor=None).width(768, 768) == 5


def test_dropout_acts_inside_the_adapter_only() -> None:
    adapter = attach(tiny("bert"), Houlsby(dropout=0.5, reduction_factor=1.0), seed=0)
    delta = adapter.deltas()[0].train()
    assert isinstance(delta, Bottleneck)
    x = torch.randn(3, 32)
    assert torch.equal(delta.adapted(x), torch.zeros(3, 32)), "W_up is zero, so dropout shows nowhere"
    with torch.no_grad():
        delta.up.normal_()
    assert not torch.equal(delta.adapted(x), delta.adapted(x))
    delta.eval()
    assert torch.equal(delta.adapted(x), delta.adapted(x))


@pytest.mark.parametrize("more", [{"quantize": "nf4"}, {"quantize": "int8"}, {"dtype": "bfloat16"}], ids=str)
def test_on_other_weights_the_adapters_stay_fp32_and_train(more: dict[str, str]) -> None:
    backbone = tiny("bert", **more)
    attach(backbone, Houlsby(init="normal"), seed=0, train_head=False)
    backbone(*batch()).sum().backward()
    for parameter in backbone.parameters():
        if parameter.requires_grad:
            assert parameter.dtype == torch.float32
            assert parameter.grad is not None
            assert parameter.grad.abs().max() > 0
    layer = backbone.model.bert.encoder.layer[0].output.dense
    dtype = torch.bfloat16 if "dtype" in more else torch.float32
    assert layer(torch.randn(2, 3, 64, dtype=dtype)).dtype == dtype


def test_it_cannot_be_merged() -> None:
    adapter = attach(tiny("bert"), Houlsby(), seed=0)
    for call in (adapter.merge, adapter.unmerge):
        with pytest.raises(PeftlabError, match=r"'houlsby' cannot be merged .* not linear \(gelu stands between"):
            call()


def test_the_text_classifier_by_role() -> None:
    backbone = TextClassifierConfig().build(2, seed=0, train_texts=["a b c"])
    with pytest.raises(PeftlabError, match="'attention_output' is a role that text_classifier does not have"):
        attach(backbone, Houlsby(targets=["attention_output"]), seed=0)
    strategy = Houlsby(targets=["hidden"], bottleneck=4, reduction_factor=None)
    assert strategy.closed_form(backbone) == 2 * 128 * 4 + 4 + 128


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"bottleneck": 8}, r"peft\.bottleneck=8 and peft\.reduction_factor=16 both"),
        ({"reduction_factor": None}, r"peft\.bottleneck and peft\.reduction_factor are both null"),
        ({"targets": []}, r"peft\.targets is empty"),
    ],
)
def test_impossible_fields(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Houlsby(**fields)


def test_wrong_targets() -> None:
    with pytest.raises(PeftlabError, match="is an embedding"):
        attach(tiny("bert"), Houlsby(targets=["embedding"]), seed=0)
    with pytest.raises(PeftlabError, match="Did you mean 'ffn_down'"):
        attach(tiny("bert"), Houlsby(targets=["ffn_dwon"]), seed=0)


def test_a_bottleneck_wider_than_its_place_is_refused() -> None:
    backbone = tiny("bert")
    with pytest.raises(PeftlabError, match=r"peft\.bottleneck=100000 .* at most 32\. Lower it"):
        attach(backbone, Houlsby(bottleneck=100_000, reduction_factor=None), seed=0)
    with pytest.raises(PeftlabError, match=r"peft\.reduction_factor=0\.5 .* at most 32\. Raise it"):
        Houlsby(reduction_factor=0.5).closed_form(backbone)
