"""(IA)³ by itself: slices of fused projections, merging, counts, wrong uses."""

from __future__ import annotations

import copy

import pytest
import torch

from peftlab.backbones.text_classifier import TextClassifierConfig
from peftlab.errors import PeftlabError
from peftlab.peft.base import attach
from peftlab.peft.ia3 import IA3, InputScale, OutputScale
from tests.backbones.tiny_backbones import shake
from tests.peft.published import trainable
from tests.peft.randomised import randomised
from tests.peft.tiny import KINDS, batch, tiny


@pytest.mark.parametrize(
    ("strategy", "name", "count"),
    [
        (IA3(), "t0-11b", 1_081_344),  # the paper: 0.01 % of T0-11B
        (IA3(), "roberta-base", 12 * (768 + 768 + 3072)),
        (IA3(), "gpt2-medium", 24 * (1024 + 1024 + 4096)),
        (IA3(targets=[]), "roberta-base", 12 * 3072),
        (IA3(feedforward_targets=[]), "roberta-base", 12 * 2 * 768),
    ],
)
def test_counts(strategy: IA3, name: str, count: int) -> None:
    assert trainable(strategy, name) == count


@pytest.mark.parametrize("padded", [True, False])
def test_slices_of_gpt2_against_hooks(padded: bool) -> None:
    """HF peft cannot scale a third of c_attn; hooks on the unchanged model can."""
    backbone = tiny("gpt2")
    model = copy.deepcopy(backbone.model)
    adapter = attach(backbone, IA3(), seed=0, train_head=False)
    randomised(backbone)
    copies = {name: p.detach().clone().requires_grad_() for name, p in adapter.named_parameters()}
    for index, block in enumerate(model.transformer.h):
        place = f"transformer.h.{index}"
        scales = [copies[f"{place}.attn.c_attn.deltas.{role}.scale"] for role in ("key", "value")]
        fed = copies[f"{place}.mlp.c_proj.deltas.input.scale"]
        block.attn.c_attn.register_forward_hook(
            lambda _m, _i, out, scales=scales: out * torch.cat([torch.ones(32), *scales])
        )
        block.mlp.c_proj.register_forward_pre_hook(lambda _m, inputs, fed=fed: (inputs[0] * fed,))
    ids, mask = batch()
    if not padded:
        mask = torch.ones_like(mask)
    logits, expected = backbone(ids, mask), model(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    labels = torch.tensor([0, 1, 2, 1])
    torch.nn.functional.cross_entropy(logits, labels).backward()
    torch.nn.functional.cross_entropy(expected, labels).backward()
    assert len(copies) == 6 == sum(p.requires_grad for p in backbone.parameters())
    for name, mine in adapter.named_parameters():
        assert mine.grad is not None
        assert mine.grad.abs().max() > 0, name
        torch.testing.assert_close(mine.grad, copies[name].grad, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", [*KINDS, "phi3"])
def test_merged_equals_unmerged(kind: str) -> None:
    backbone = tiny(kind)
    shake(backbone)  # fresh biases are zero
    adapter = attach(backbone, IA3(), seed=0)
    randomised(backbone)
    ids, mask = batch()
    weights = {n: p.clone() for n, p in backbone.model.named_parameters()}
    with torch.no_grad():
        expected = backbone(ids, mask)
        adapter.merge()
        adapter.merge()  # twice is once
        torch.testing.assert_close(backbone(ids, mask), expected, atol=1e-5, rtol=1e-4)
        changed = {n for n, p in backbone.model.named_parameters() if not torch.equal(p, weights[n])}
        assert changed
        assert all(".base." in name for name in changed)
        adapter.unmerge()
        adapter.unmerge()
        assert torch.equal(backbone(ids, mask), expected)
    for name, parameter in backbone.model.named_parameters():
        assert torch.equal(parameter, weights[name]), name


@pytest.mark.parametrize("which", [OutputScale, InputScale])
def test_a_scale_of_zero_is_unmerged_as_well(which: type[OutputScale | InputScale]) -> None:
    """What a merged scale has made of the weight does not matter: the original is put back."""
    backbone = tiny("bert")
    shake(backbone)  # fresh biases are zero
    adapter = attach(backbone, IA3(), seed=0)
    placed = next(placed for placed in adapter.placed() if isinstance(placed.delta, which))
    with torch.no_grad():
        placed.delta.get_parameter("scale")[3] = 0
        weights = {n: p.clone() for n, p in backbone.model.named_parameters()}
        expected = backbone(*batch())
        adapter.merge()
        lost = placed.layer.weight[3] if which is OutputScale else placed.layer.weight[:, 3]
        assert torch.equal(lost, torch.zeros_like(lost))
        torch.testing.assert_close(backbone(*batch()), expected, atol=1e-5, rtol=1e-4)
        adapter.unmerge()
        assert torch.equal(backbone(*batch()), expected)
    for name, parameter in backbone.model.named_parameters():
        assert torch.equal(parameter, weights[name]), name


def test_one_layer_may_be_scaled_on_both_sides() -> None:
    backbone = tiny("bert")
    original = copy.deepcopy(backbone.model.bert.encoder.layer[0].output.dense)
    attach(backbone, IA3(targets=["ffn_down"]), seed=0, train_head=False)
    randomised(backbone)
    layer = backbone.model.bert.encoder.layer[0].output.dense
    x = torch.randn(2, 5, 64)
    expected = original(x * layer.deltas["input"].scale) * layer.deltas["all"].scale
    torch.testing.assert_close(layer(x), expected)
    assert isinstance(layer.deltas["input"], InputScale)
    assert isinstance(layer.deltas["all"], OutputScale)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_on_a_quantised_backbone_it_trains_and_refuses_to_merge(kind: str) -> None:
    backbone = tiny("bert", quantize=kind)
    adapter = attach(backbone, IA3(), seed=0, train_head=False)
    backbone(*batch()).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in backbone.parameters() if p.requires_grad)
    with pytest.raises(PeftlabError, match=r"backbone\.quantize=null"):
        adapter.merge()


def test_scales_are_fp32_and_outputs_keep_the_backbones_type() -> None:
    backbone = tiny("bert", dtype="bfloat16")
    attach(backbone, IA3(), seed=0, train_head=False)
    assert {p.dtype for p in backbone.parameters() if p.requires_grad} == {torch.float32}
    layer = backbone.model.bert.encoder.layer[0].output.dense
    assert layer(torch.randn(3, 64, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_the_text_classifier_by_name() -> None:
    backbone = TextClassifierConfig().build(2, seed=0, train_texts=["a b c"])
    with pytest.raises(PeftlabError, match="a role that text_classifier does not have"):
        attach(backbone, IA3(targets=["key"]), seed=0)
    strategy = IA3(targets=["hidden"], feedforward_targets=["hidden"])
    assert strategy.closed_form(backbone) == 128 + 100


@pytest.mark.parametrize(
    ("kind", "fields", "said"),
    [
        ("bert", {"targets": ["embedding"]}, r"peft\.targets: 'bert\.embeddings\.word_embeddings' is an embedding"),
        ("bert", {"feedforward_targets": ["embedding"]}, r"peft\.feedforward_targets: .* is an embedding"),
        ("phi3", {"feedforward_targets": ["ffn_up"]}, "whose input all parts share"),
        ("gpt_neox", {}, "interleaved"),
    ],
)
def test_wrong_uses(kind: str, fields: dict[str, object], said: str) -> None:
    with pytest.raises(PeftlabError, match=said):
        attach(tiny(kind), IA3(**fields), seed=0)  # type: ignore[arg-type]


def test_nothing_to_scale_is_refused() -> None:
    with pytest.raises(ValueError, match="both empty"):
        IA3(targets=[], feedforward_targets=[])
