"""VeRA by itself: the shared matrices, counts, slices, merging, saving, wrong uses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from peftlab.errors import PeftlabError
from peftlab.peft.adapter import Adapter
from peftlab.peft.base import attach
from peftlab.peft.vera import RandomProjection, VeRA, VeRADelta
from tests.peft.published import trainable
from tests.peft.randomised import randomised
from tests.peft.tiny import KINDS, batch, tiny


@pytest.mark.parametrize(
    ("strategy", "name", "count"),
    [
        (VeRA(rank=1024), "roberta-base", 43_008),  # paper, table 2: 0.043M
        (VeRA(rank=256), "roberta-large", 61_440),  # paper, table 2: 0.061M
        (VeRA(rank=16, targets=["query", "ffn_up"]), "gpt2-medium", 24 * (16 + 1024 + 16 + 4096)),
    ],
)
def test_counts(strategy: VeRA, name: str, count: int) -> None:
    assert trainable(strategy, name) == count


def adapted(kind: str = "bert", seed: int = 0, **fields: Any) -> tuple[Any, Adapter]:
    backbone = tiny(kind)
    return backbone, attach(backbone, VeRA(**{"rank": 16, **fields}), seed=seed, train_head=False)


def test_the_matrices_are_made_once_in_the_largest_size_and_never_train() -> None:
    backbone, adapter = adapted(targets=["query", "ffn_up", "ffn_down"])
    (projection,) = [m for m in backbone.model.modules() if isinstance(m, RandomProjection)]
    assert projection.A.shape == (16, 64)
    assert projection.B.shape == (64, 16)
    bound = (6 / 64) ** 0.5  # Kaiming's uniform distribution: gain √2, √3 standard deviations, fan in 64
    assert 0.9 * bound < projection.A.abs().max() < bound
    assert adapter.modules() == {"vera_projection": projection}
    saved = [name for name in adapter.state_dict() if name.endswith((".A", ".B"))]
    assert saved == ["vera_projection.A", "vera_projection.B"]
    assert adapter.frozen_state().keys() == set(saved), "no layer has a copy"
    assert not any(name.endswith((".A", ".B")) for name, _ in backbone.named_parameters())


def test_a_layer_uses_leading_rows_and_columns() -> None:
    backbone, _ = adapted(targets=["query", "ffn_up"])
    original = copy.deepcopy(backbone.model.bert.encoder.layer[0].attention.self.query.base)
    randomised(backbone)
    layer = backbone.model.bert.encoder.layer[0].attention.self.query
    delta, projection = layer.deltas["all"], backbone.model.vera_projection
    x = torch.randn(3, 32)
    dense = torch.diag(delta.b) @ projection.B[:32] @ torch.diag(delta.d) @ projection.A[:, :32]
    torch.testing.assert_close(layer(x) - original(x), x @ dense.T, atol=1e-5, rtol=1e-5)


def test_the_query_slice_of_gpt2_changes_queries_only() -> None:
    backbone, _ = adapted("gpt2", targets=["query"])
    randomised(backbone)
    layer = backbone.model.transformer.h[0].attn.c_attn
    x = torch.randn(2, 5, 32)
    difference = layer(x) - layer.base(x)
    delta, projection = layer.deltas["query"], backbone.model.vera_projection
    assert projection.A.shape == (16, 32)
    assert projection.B.shape == (32, 16), "of the slice's size"
    update = delta.b * (delta.d * (x @ projection.A.T) @ projection.B.T)
    torch.testing.assert_close(difference[..., :32], update, atol=1e-5, rtol=1e-5)
    assert difference[..., :32].abs().max() > 0
    assert torch.equal(difference[..., 32:], torch.zeros(2, 5, 64))


def test_seeds_decide_the_matrices() -> None:
    def matrix(**arguments: object) -> torch.Tensor:
        torch.manual_seed(int(torch.randint(1000, (1,))))  # whatever was drawn before
        return adapted(**arguments)[0].model.vera_projection.A  # type: ignore[arg-type, no-any-return]

    assert torch.equal(matrix(seed=0), matrix(seed=0))
    assert not torch.equal(matrix(seed=0), matrix(seed=1))
    assert torch.equal(matrix(seed=0, projection_seed=7), matrix(seed=1, projection_seed=7))
    assert not torch.equal(matrix(seed=0, projection_seed=7), matrix(seed=0, projection_seed=8))


def test_an_adapter_brings_its_matrices_along() -> None:
    backbone, adapter = adapted(seed=0)
    randomised(backbone)
    other, another = adapted(seed=1)
    ids, mask = batch()
    another.load_state_dict({n: t.clone() for n, t in adapter.state_dict().items()})
    assert torch.equal(backbone(ids, mask), other(ids, mask))
    duplicate = copy.deepcopy(other)  # a copy shares its own matrices, not the original's
    with torch.no_grad():
        other.model.vera_projection.A.zero_()
    assert torch.equal(backbone(ids, mask), duplicate(ids, mask))


@pytest.mark.parametrize("kind", [*KINDS, "phi3"])
def test_merged_equals_unmerged(kind: str) -> None:
    backbone, adapter = adapted(kind, targets=["query", "value", "ffn_down"])
    randomised(backbone)
    ids, mask = batch()
    weights = {n: p.clone() for n, p in backbone.model.named_parameters()}
    with torch.no_grad():
        expected = backbone(ids, mask)
        adapter.merge()
        adapter.merge()  # twice is once
        torch.testing.assert_close(backbone(ids, mask), expected, atol=2e-4, rtol=1e-4)
        assert any(not torch.equal(p, weights[n]) for n, p in backbone.model.named_parameters())
        adapter.unmerge()
        assert torch.equal(backbone(ids, mask), expected)
    for name, parameter in backbone.model.named_parameters():
        assert torch.equal(parameter, weights[name]), name


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_on_a_quantised_backbone_it_trains_and_refuses_to_merge(kind: str) -> None:
    backbone = tiny("bert", quantize=kind)
    adapter = attach(backbone, VeRA(rank=8), seed=0, train_head=False)
    randomised(backbone)
    backbone(*batch()).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in backbone.parameters() if p.requires_grad)
    with pytest.raises(PeftlabError, match=r"backbone\.quantize=null"):
        adapter.merge()


def test_dropout_acts_on_the_adapters_path_only() -> None:
    backbone, adapter = adapted(dropout=0.5)
    assert all(isinstance(delta, VeRADelta) for delta in adapter.deltas())
    layer: Any = adapter.placed()[0].layer.train()
    x = torch.randn(3, 32)
    assert torch.equal(layer(x), layer.base(x)), "b is zero, so dropout shows nowhere"
    randomised(backbone)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_vectors_are_fp32_on_a_half_precision_backbone() -> None:
    backbone = tiny("bert", dtype="bfloat16")
    adapter = attach(backbone, VeRA(rank=8), seed=0, train_head=False)
    assert {p.dtype for p in backbone.parameters() if p.requires_grad} == {torch.float32}
    layer = adapter.placed()[0].layer
    assert layer(torch.randn(3, 32, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_wrong_uses() -> None:
    with pytest.raises(PeftlabError, match="is an embedding"):
        attach(tiny("bert"), VeRA(targets=["embedding"]), seed=0)
    with pytest.raises(PeftlabError, match="Did you mean 'query'"):
        attach(tiny("bert"), VeRA(targets=["qurey"]), seed=0)
    with pytest.raises(ValueError, match=r"peft\.targets is empty"):
        VeRA(targets=[])
    with pytest.raises(ValueError, match=r"peft\.d_initial=0"):
        VeRA(d_initial=0.0)
