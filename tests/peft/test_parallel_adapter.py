"""Parallel adapters: beside sub-layers and linear layers, counts, wrong uses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from peftlab.backbones.text_classifier import TextClassifierConfig
from peftlab.errors import PeftlabError
from peftlab.peft.base import attach
from peftlab.peft.parallel_adapter import ParallelAdapter, SubLayerDelta
from tests.backbones.tiny_backbones import ARCHITECTURES
from tests.backbones.tiny_backbones import batch as texts_batch
from tests.peft.plain_adapters import beside, compare_with_plain
from tests.peft.published import trainable
from tests.peft.tiny import batch, tiny

SUB_LAYERS = {  # blocks, then (first, last) of attention and of the feed-forward
    "bert": (
        "bert.encoder.layer",
        ("attention.self.query", "attention.output.dense"),
        ("intermediate.dense", "output.dense"),
    ),
    "distilbert": ("distilbert.transformer.layer", ("attention.q_lin", "attention.out_lin"), ("ffn.lin1", "ffn.lin2")),
    "gpt2": ("transformer.h", ("attn.c_attn", "attn.c_proj"), ("mlp.c_fc", "mlp.c_proj")),
    "llama": ("model.layers", ("self_attn.q_proj", "self_attn.o_proj"), ("mlp.up_proj", "mlp.down_proj")),
    "modernbert": ("model.layers", ("attn.Wqkv", "attn.Wo"), ("mlp.Wi", "mlp.Wo")),
}


@pytest.mark.parametrize(
    ("name", "fields", "count"),
    [
        # DoRA paper, table 1: LLaMA-7B "Parallel", 3.54 %: 256 wide beside both feed-forward projections
        (
            "llama-7b",
            {"targets": ["ffn_up", "ffn_down"], "bottleneck": 256, "reduction_factor": None, "bias": False},
            247_463_936,
        ),
        ("roberta-base", {}, 12 * (2 * 768 * 48 + 48 + 768)),
        ("roberta-base", {"learned_scale": True}, 12 * (2 * 768 * 48 + 48 + 768 + 1)),
        ("roberta-base", {"targets": ["ffn", "attention"]}, 24 * (2 * 768 * 48 + 48 + 768)),
        ("gpt2-medium", {"targets": ["ffn_up"]}, 24 * ((1024 + 4096) * 64 + 64 + 4096)),
    ],
)
def test_counts(name: str, fields: dict[str, Any], count: int) -> None:
    assert trainable(ParallelAdapter(**fields), name) == count


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("kind", SUB_LAYERS)
def test_beside_sub_layers_against_plain_hooks(kind: str, learned: bool, padded: bool) -> None:
    blocks, *pairs = SUB_LAYERS[kind]

    def hooks(model: nn.Module, weights: Any) -> None:
        for index in range(2):
            for first, last in pairs:
                ends = [model.get_submodule(f"{blocks}.{index}.{name}") for name in (first, last)]
                around = weights(f"{blocks}.{index}.{last}.deltas.sub_layer")
                assert ("scale" in around) == learned
                beside(*ends, around, activation="gelu", scale=2.5)

    strategy = ParallelAdapter(targets=["ffn", "attention"], scale=2.5, learned_scale=learned)
    compare_with_plain(kind, strategy, hooks, padded=padded)


def test_beside_linear_layers_and_around_them_against_plain_hooks() -> None:
    """A layer can have an adapter of its own and end, or begin, a sub-layer that has one."""
    places = ["mlp.up_proj", "mlp.down_proj", "self_attn.v_proj"]

    def hooks(model: nn.Module, weights: Any) -> None:
        for block in ("model.layers.0", "model.layers.1"):
            for name in places:
                module = model.get_submodule(f"{block}.{name}")
                beside(module, module, weights(f"{block}.{name}.deltas.all"), activation="relu", scale=4.0)
            ends = [model.get_submodule(f"{block}.mlp.{name}") for name in ("up_proj", "down_proj")]
            beside(*ends, weights(f"{block}.mlp.down_proj.deltas.sub_layer"), activation="relu", scale=4.0)

    strategy = ParallelAdapter(targets=["ffn_up", "ffn", "ffn_down", "value"], activation="relu", reduction_factor=4.0)
    compare_with_plain("llama", strategy, hooks, padded=True)


def test_a_slice_of_a_fused_projection() -> None:
    adapter = attach(tiny("gpt2"), ParallelAdapter(targets=["value"], init="normal"), seed=0, train_head=False)
    layer = adapter.model.transformer.h[0].attn.c_attn
    x = torch.randn(2, 5, 32)
    difference = layer(x) - layer.base(x)
    assert torch.equal(difference[..., :64], torch.zeros(2, 5, 64))
    torch.testing.assert_close(difference[..., 64:], layer.deltas["value"].adapted(x), atol=1e-6, rtol=1e-4)
    assert difference[..., 64:].abs().max() > 0


@pytest.mark.parametrize("sub_layer", ["ffn", "attention"])
@pytest.mark.parametrize("kind", sorted(set(ARCHITECTURES) - {"deberta", "gpt_neox", "xlnet"}))
def test_every_architecture_has_the_sub_layers(kind: str, sub_layer: str) -> None:
    """T5's decoder has two attentions a block; ALBERT runs its one block several times."""
    backbone = tiny(kind)
    ids, mask = texts_batch(backbone, ["a fine film", "dull"])
    backbone.requires_grad_(False)
    before = backbone(ids, mask)
    adapter = attach(backbone, ParallelAdapter(targets=[sub_layer]), seed=0, train_head=False)
    assert torch.equal(backbone(ids, mask), before)
    deltas = [delta for delta in adapter.deltas() if isinstance(delta, SubLayerDelta)]
    assert len(deltas) == len(adapter.deltas())
    assert len(deltas) == {"albert": 1, "t5": 6 if sub_layer == "attention" else 4}.get(kind, 2)
    with torch.no_grad():
        for delta in deltas:
            delta.up.normal_()
    assert not torch.equal(backbone(ids, mask), before)
    # Nothing is kept between two forward passes.
    assert all(delta._input is None for delta in deltas)
    with adapter.disabled():
        assert torch.equal(backbone(ids, mask), before)
    first = next(module for module in backbone.modules() if module._forward_pre_hooks)
    adapter.remove()
    assert torch.equal(backbone(ids, mask), before)
    assert not first._forward_pre_hooks, "no hook stays"


def test_a_copy_reads_its_own_input() -> None:
    backbone = tiny("bert")
    attach(backbone, ParallelAdapter(init="normal"), seed=0)
    duplicate = copy.deepcopy(backbone)
    assert torch.equal(backbone(*batch()), duplicate(*batch()))


@pytest.mark.parametrize(
    ("kind", "targets", "said"),
    [
        ("deberta", ["attention"], "'attention' needs the role 'query': 'in_proj' holds query, key and value"),
        ("bert", ["fnn"], "'fnn' matches no linear layer"),
        ("bert", ["embedding"], "is an embedding"),
    ],
)
def test_wrong_uses(kind: str, targets: list[str], said: str) -> None:
    with pytest.raises(PeftlabError, match=said):
        attach(tiny(kind), ParallelAdapter(targets=targets), seed=0)


@pytest.mark.parametrize("targets", [["ffn"], ["query"]])
def test_a_bottleneck_wider_than_its_place_is_refused(targets: list[str]) -> None:
    too_wide = ParallelAdapter(targets=targets, bottleneck=33, reduction_factor=None)
    for ask in (lambda: attach(tiny("bert"), too_wide, seed=0), lambda: too_wide.closed_form(tiny("bert"))):
        with pytest.raises(PeftlabError, match=r"peft\.bottleneck=33 .*\(32 → 32\).*at most 32\. Lower it"):
            ask()  # type: ignore[no-untyped-call]
    attach(tiny("bert"), ParallelAdapter(targets=targets, bottleneck=32, reduction_factor=None), seed=0)


def test_the_text_classifier_has_no_sub_layers_but_linear_ones() -> None:
    backbone = TextClassifierConfig().build(2, seed=0, train_texts=["a b c"])
    with pytest.raises(PeftlabError, match="'ffn' needs the role 'ffn_up': text_classifier has no such role"):
        attach(backbone, ParallelAdapter(targets=["ffn"]), seed=0)
    strategy = ParallelAdapter(targets=["hidden"], bottleneck=4, reduction_factor=None)
    assert strategy.closed_form(backbone) == (100 + 128) * 4 + 4 + 128
