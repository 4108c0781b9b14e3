"""LoRA by itself: identity, counts, slices, embeddings, merging, initialisation, wrong uses."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peftlab.backbones.base import Target
from peftlab.backbones.transformer import TransformerConfig
from peftlab.errors import PeftlabError
from peftlab.peft.adapter import Adapter
from peftlab.peft.base import attach
from peftlab.peft.delta import AdaptedLayer
from peftlab.peft.lora import LoRA
from peftlab.peft.low_rank import LowRank
from peftlab.runs.counted import count_parameters
from tests.peft.randomised import randomised
from tests.peft.tiny import KINDS, batch, tiny


def first_layer(adapter: Adapter) -> tuple[AdaptedLayer, LowRank]:
    """The first layer that has been adapted, and what is on it."""
    placed = adapter.placed()[0]
    assert isinstance(placed.delta, LowRank)
    return placed.layer, placed.delta


def test_roberta_base_has_294_912_trainable_parameters() -> None:
    """LoRA paper, table 2: "0.3M" for RoBERTa-base, rank 8 on query and value, without the head."""
    architecture = {
        "model_type": "roberta",
        "vocab_size": 50265,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
    }
    backbone = TransformerConfig(architecture=architecture).build(2, seed=0, device="meta")
    counts = count_parameters(attach(backbone, LoRA(rank=8), seed=0))
    assert counts["trainable_without_head"] == counts["added"] == 294_912
    assert counts["total"] - 294_912 == 124_647_170


@pytest.mark.parametrize("kind", KINDS)
def test_it_starts_as_the_backbone_and_freezes_it(kind: str) -> None:
    backbone = tiny(kind)
    ids, mask = batch()
    before = backbone(ids, mask)
    adapter = attach(backbone, LoRA(targets=["query", "value", "ffn_up"]), seed=0)
    assert torch.equal(before, backbone(ids, mask))
    trainable = {n: p for n, p in backbone.model.named_parameters() if p.requires_grad}
    head = {n for n, _ in backbone.head_parameters()}
    assert head <= trainable.keys()
    assert all(".deltas." in name for name in trainable.keys() - head)
    own = dict(adapter.named_parameters())
    assert all(name.endswith((".lora_A", ".lora_B")) for name in own)
    assert own == {name: p for name, p in trainable.items() if name not in head}


def test_the_query_slice_of_gpt2_changes_queries_only() -> None:
    backbone = tiny("gpt2")
    original = copy.deepcopy(backbone.model.transformer.h[0].attn.c_attn)
    adapter = attach(backbone, LoRA(rank=3, targets=["query", "value"]), seed=0, train_head=False)
    randomised(backbone)
    layer = backbone.model.transformer.h[0].attn.c_attn
    assert isinstance(layer, AdaptedLayer)
    x = torch.randn(2, 5, 32)
    difference = layer(x) - original(x)
    for position, role in ((0, "query"), (2, "value")):
        delta = layer.deltas[role]
        assert isinstance(delta, LowRank)
        expected = x @ delta.lora_A.T @ delta.lora_B.T * (16.0 / 3)
        torch.testing.assert_close(difference[..., position * 32 : (position + 1) * 32], expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(difference[..., 32:64], torch.zeros(2, 5, 32)), "keys are not touched"
    # 2 layers · 2 roles · rank · (in + slice)
    assert count_parameters(adapter)["trainable_without_head"] == 2 * 2 * 3 * (32 + 32)


@pytest.mark.parametrize("kind", KINDS)
def test_merged_equals_unmerged(kind: str) -> None:
    backbone = tiny(kind)
    adapter = attach(backbone, LoRA(rank=2, targets=["query", "value", "ffn_down", "embedding"]), seed=0)
    randomised(backbone)
    ids, mask = batch()
    weights = {n: p.clone() for n, p in backbone.model.named_parameters()}
    with torch.no_grad():
        expected = backbone(ids, mask)
        adapter.merge()
        merged = {n: p.clone() for n, p in backbone.model.named_parameters()}
        adapter.merge()  # twice is once
        assert all(torch.equal(p, merged[n]) for n, p in backbone.model.named_parameters())
        torch.testing.assert_close(backbone(ids, mask), expected, atol=2e-4, rtol=1e-4)
        changed = [n for n, p in backbone.model.named_parameters() if not torch.equal(p, weights[n])]
        assert changed
        adapter.unmerge()
        assert torch.equal(backbone(ids, mask), expected)
    for name, parameter in backbone.model.named_parameters():
        assert torch.equal(parameter, weights[name]), name


def test_an_embedding_update_is_a_lookup_of_the_dense_product() -> None:
    backbone = tiny("bert")
    adapter = attach(backbone, LoRA(rank=2, alpha=4.0, targets=["embedding"]), seed=0, train_head=False)
    layer, delta = first_layer(adapter)
    assert layer is backbone.model.get_submodule("bert.embeddings.word_embeddings")
    ids = torch.tensor([[5, 9, 5]])
    assert torch.equal(layer(ids), layer.base(ids)), "A starts from zero"
    randomised(backbone)
    dense = (delta.lora_B @ delta.lora_A).T * 2.0  # (vocabulary, dim)
    torch.testing.assert_close(layer(ids) - layer.base(ids), dense[ids], atol=1e-5, rtol=1e-5)


def test_dropout_acts_on_the_low_rank_path_only() -> None:
    backbone = tiny("bert")
    layer, _ = first_layer(attach(backbone, LoRA(rank=2, dropout=0.5), seed=0))
    x = torch.randn(3, 32)
    layer.train()
    assert torch.equal(layer(x), layer.base(x)), "B is zero, so dropout shows nowhere"
    randomised(backbone)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


@pytest.mark.parametrize("alpha", [16.0, 1.0, 12.0])
@pytest.mark.parametrize("autocast", [False, True])
def test_the_scale_rounds_as_if_it_stood_last(alpha: float, autocast: bool) -> None:
    """s · (B (A x)), to the bit, wherever a power of two stands; and an input that autocast would turn back."""
    torch.manual_seed(0)
    layer = nn.Linear(24, 40)
    strategy = LoRA(rank=8, alpha=alpha)
    target = Target("layer", layer, None)
    delta = LowRank(target, 8, scale=strategy.scale_at(target), dropout=0.0, generator=torch.Generator().manual_seed(1))
    nn.init.normal_(delta.lora_B)
    x = torch.randn(5, 24)
    outer = torch.randn(5, 40)

    def last(x: Tensor) -> Tensor:
        return F.linear(F.linear(x.float(), delta.lora_A), delta.lora_B) * (alpha / 8)

    found: list[Tensor] = []
    expected: list[Tensor] = []
    for compute, into in ((delta.low_rank, found), (last, expected)):
        given = (x.bfloat16() if autocast else x).clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = compute(given)
        into += [out, *torch.autograd.grad((out.float() * outer).sum(), (given, delta.lora_A, delta.lora_B))]
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def test_initialisation_depends_on_seed_and_place_alone() -> None:
    def adapters(seed: int, **fields: object) -> dict[str, torch.Tensor]:
        torch.manual_seed(int(torch.randint(1000, (1,))))  # whatever was drawn before
        return dict(attach(tiny("bert"), LoRA(**fields), seed=seed).named_parameters())  # type: ignore[arg-type]

    one, again, other = adapters(0), adapters(0), adapters(1)
    wider = adapters(0, targets=["key", "query", "value", "ffn_up"])
    for name, tensor in one.items():
        assert torch.equal(tensor, again[name])
        assert torch.equal(tensor, wider[name]), "further targets change nothing here"
        if name.endswith(".lora_A"):
            assert not torch.equal(tensor, other[name])
    a = [tensor for name, tensor in one.items() if name.endswith(".lora_A")]
    assert not torch.equal(a[0], a[1]), "two places start differently"


def test_adapters_stay_in_fp32_on_a_half_precision_backbone() -> None:
    backbone = tiny("bert", dtype="bfloat16")
    adapter = attach(backbone, LoRA(), seed=0)
    assert {p.dtype for p in adapter.parameters()} == {torch.float32}
    assert torch.isfinite(backbone(*batch())).all()


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_on_a_quantised_backbone_it_trains_and_refuses_to_merge(kind: str) -> None:
    backbone = tiny("bert", quantize=kind)
    adapter = attach(backbone, LoRA(rank=2), seed=0)
    backbone(*batch()).sum().backward()
    gradients = [p.grad for n, p in adapter.named_parameters() if n.endswith(".lora_B")]
    assert len(gradients) == len(adapter.deltas()) == 4
    assert all(g is not None and g.abs().max() > 0 for g in gradients)
    with pytest.raises(PeftlabError, match=r"backbone\.quantize=null"):
        adapter.merge()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"targets": ["qurey"]}, "Did you mean 'query'"),
        ({"targets": ["query", "gate_proj"]}, "gate_proj"),
        ({"rank": 64}, "at most 32"),
        ({"rank_pattern": {"ffn_up": 2}}, "peft.rank_pattern: 'ffn_up' matches none"),
        ({"alpha_pattern": {"(": 2.0}}, "not a regular expression"),
    ],
)
def test_wrong_uses(fields: dict[str, object], said: str) -> None:
    with pytest.raises(PeftlabError) as error:
        attach(tiny("bert"), LoRA(**fields), seed=0)  # type: ignore[arg-type]
    assert said in str(error.value)
