"""DoRA by itself: the norm without the dense product, slices, embeddings, quantised weights, merging, counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from peftlab.backbones.transformer import TransformerConfig
from peftlab.errors import PeftlabError
from peftlab.peft.adapter import Adapter
from peftlab.peft.base import attach
from peftlab.peft.delta import AdaptedLayer
from peftlab.peft.dora import DoRA, DoRADelta
from peftlab.peft.surgery import weight_matrix
from peftlab.runs.counted import count_parameters
from tests.peft.tiny import KINDS, batch, tiny


def adapted(kind: str, backbone: Any = None, **fields: Any) -> Adapter:
    """A backbone with DoRA whose every trained tensor is away from its start."""
    backbone = tiny(kind) if backbone is None else backbone
    adapter = attach(backbone, DoRA(**fields), seed=0, train_head=False)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(parameter * (1 + 0.3 * noise) if name.endswith("magnitude") else 0.2 * noise)
    return adapter


def dense_rows(layer: AdaptedLayer, delta: DoRADelta) -> Tensor:
    """m · (W + s B A) / ‖W + s B A‖ by the book, (rows, in), in float64."""
    W = weight_matrix(layer.base)[delta.rows or slice(None)].double()
    W = W + delta.scale * delta.lora_B.double() @ delta.lora_A.double()
    return delta.magnitude.double()[:, None] * W / W.norm(dim=1, keepdim=True)


def first_layer(adapter: Adapter, part: str) -> Any:
    """The first adapted layer with ``part`` in its name."""
    return next(placed.layer for placed in adapter.placed() if part in placed.name)


def only_delta(layer: AdaptedLayer) -> DoRADelta:
    (delta,) = layer.deltas.values()
    assert isinstance(delta, DoRADelta)
    return delta


@pytest.mark.parametrize("kind", KINDS)
def test_it_starts_as_the_backbone_to_the_bit(kind: str) -> None:
    backbone = tiny(kind)
    ids, mask = batch()
    before = backbone(ids, mask)
    attach(backbone, DoRA(targets=["query", "value", "ffn_up", "embedding"]), seed=0)
    assert torch.equal(before, backbone(ids, mask))


@pytest.mark.parametrize("quantize", [None, "nf4", "int8"])
def test_the_norm_needs_no_dense_product(quantize: str | None) -> None:
    layer = first_layer(adapted("bert", tiny("bert", quantize=quantize), targets=["ffn_up"]), "intermediate")
    delta = only_delta(layer)
    weight = weight_matrix(layer.base)
    dense = (weight.double() + delta.scale * delta.lora_B.double() @ delta.lora_A.double()).norm(dim=1)
    assert (dense / weight.double().norm(dim=1) > 1.5).all(), "the update must matter"
    torch.testing.assert_close(delta.norm(weight).double(), dense, atol=0, rtol=1e-6)


@pytest.mark.parametrize("quantize", ["nf4", "fp4", "int8"])
def test_dequantised_weights_are_what_the_layer_multiplies_with(quantize: str) -> None:
    layer = tiny("bert", quantize=quantize).model.bert.encoder.layer[0].attention.self.query
    eye = torch.eye(32)
    for _ in range(2):  # an int8 layer keeps its scales elsewhere after the first product
        product = layer(eye) - layer.bias
        torch.testing.assert_close(weight_matrix(layer), product.T, atol=1e-3, rtol=1e-3)
    original = tiny("bert").model.bert.encoder.layer[0].attention.self.query
    assert 0 < (weight_matrix(layer) - original.weight).abs().max() < 0.02


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_layer_is_the_book_s_formula(kind: str) -> None:
    layer = first_layer(adapted(kind, targets=["value"]), "v_proj" if kind == "llama" else "value")
    delta = only_delta(layer)
    x = torch.randn(2, 5, 32)
    expected = F.linear(x.double(), dense_rows(layer, delta), None if layer.bias is None else layer.bias.double())
    torch.testing.assert_close(layer(x).double(), expected, atol=1e-5, rtol=0)


def test_slices_of_gpt2_have_their_own_magnitudes() -> None:
    layer = first_layer(adapted("gpt2", targets=["query", "value"], rank=3), "h.0.attn.c_attn")
    with torch.no_grad():
        layer.base.bias.normal_()  # it starts from zero, where a wrong treatment would not show
    x = torch.randn(2, 5, 32)
    weight, out = layer.base.weight.T.double(), layer(x).double()
    assert list(layer.deltas) == ["query", "value"]
    for role, rows in (("query", slice(0, 32)), ("value", slice(64, 96))):
        expected = F.linear(x.double(), dense_rows(layer, layer.deltas[role]), layer.base.bias[rows].double())
        torch.testing.assert_close(out[..., rows], expected, atol=1e-5, rtol=0)
    keys = slice(32, 64)
    torch.testing.assert_close(
        out[..., keys], F.linear(x.double(), weight[keys], layer.base.bias[keys].double()), atol=1e-5, rtol=0
    )


def test_an_embedding_is_scaled_by_dimension() -> None:
    layer = first_layer(adapted("bert", targets=["embedding"], rank=2), "word_embeddings")
    delta = only_delta(layer)
    assert delta.magnitude.shape == (32,)
    ids = torch.tensor([[5, 9, 5]])
    torch.testing.assert_close(layer(ids).double(), dense_rows(layer, delta).T[ids], atol=1e-5, rtol=0)


def test_the_norm_is_detached_or_not() -> None:
    gradients = {}
    for detach in (True, False):
        layer = first_layer(adapted("bert", targets=["query"], detach_norm=detach), "query")
        delta = only_delta(layer)
        x = torch.randn(7, 32, generator=torch.Generator().manual_seed(0))
        layer(x).square().sum().backward()
        ours = {name: parameter.grad.double() for name, parameter in delta.named_parameters()}
        W = layer.base.weight.double()
        A, B, m = (p.detach().double().requires_grad_() for p in (delta.lora_A, delta.lora_B, delta.magnitude))
        full = W + delta.scale * B @ A
        norm = full.norm(dim=1, keepdim=True)
        out = F.linear(x.double(), m[:, None] * full / (norm.detach() if detach else norm), layer.bias.double())
        out.square().sum().backward()
        for name, reference in (("lora_A", A), ("lora_B", B), ("magnitude", m)):
            scale = float(reference.grad.abs().max())
            torch.testing.assert_close(ours[name], reference.grad, atol=1e-5 * scale, rtol=0)
        gradients[detach] = ours
    assert not torch.allclose(gradients[True]["lora_B"], gradients[False]["lora_B"], rtol=1e-2)
    torch.testing.assert_close(gradients[True]["magnitude"], gradients[False]["magnitude"])


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
@pytest.mark.parametrize(
    "fields", [{}, {"detach_norm": False}, {"dropout": 0.3}, {"dropout": 0.3, "dropout_mode": "low_rank"}]
)
def test_one_pass_is_the_formula_written_out(
    kind: str, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values and all gradients, of what lies below too, in float64; dropout draws the same masks."""
    found = []
    for in_one_pass in (True, False):
        layer = first_layer(adapted(kind, targets=["query", "value"], **fields), "attn" if kind == "gpt2" else "self")
        layer = layer.double().train()
        if layer.bias is not None:
            torch.nn.init.normal_(layer.base.bias, generator=torch.Generator().manual_seed(1))
        delta = next(iter(layer.deltas.values()))
        assert delta._one_type(torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
        if not in_one_pass:
            monkeypatch.setattr(DoRADelta, "_one_type", lambda *_: False)
        x = torch.randn(2, 5, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
        torch.manual_seed(2)
        out = layer(x)
        (out.sin() * torch.arange(out.numel()).view(out.shape)).sum().backward()
        monkeypatch.undo()
        gradients = {name: parameter.grad for name, parameter in layer.deltas.named_parameters()}
        found.append({"out": out.detach(), "x": x.grad, **gradients})
    assert found[0].keys() == found[1].keys()
    for name, expected in found[1].items():
        assert expected.abs().max() > 0
        torch.testing.assert_close(found[0][name], expected, atol=1e-11 * float(expected.abs().max()), rtol=1e-9)


@pytest.mark.parametrize("change", ["bfloat16", "autocast", "embedding"])
def test_other_types_take_the_formula_written_out(change: str) -> None:
    targets = ["query", "embedding"]
    layer = first_layer(adapted("bert", targets=targets), "embedding" if change == "embedding" else "self")
    delta, x = only_delta(layer), torch.randn(2, 5, 32)
    if change == "embedding":
        x = torch.tensor([[5, 9, 5]])
        assert not delta._one_type(x, layer.base(x))
        return
    assert delta._one_type(x, layer.base(x))
    if change == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            assert not delta._one_type(x, layer.base(x))
        return
    low = x.bfloat16(), layer.base(x).bfloat16()
    assert not delta._one_type(*low)
    delta.bfloat16()  # of precision=bf16-true
    assert not delta._one_type(*low)


def test_without_dropout_its_mode_tells_no_runs_apart() -> None:
    """And the key is that of runs from when the mode was another by default."""
    assert DoRA() == DoRA(dropout_mode="peft") == DoRA(dropout_mode="low_rank")
    assert DoRA(dropout=0.1) == DoRA(dropout=0.1, dropout_mode="peft") != DoRA(dropout=0.1, dropout_mode="low_rank")


def test_dropout_can_leave_the_base_product_alone() -> None:
    backbone = adapted("bert", targets=["query"], dropout=0.5, dropout_mode="low_rank")
    layer = first_layer(backbone, "query").train()
    delta = only_delta(layer)
    with torch.no_grad():
        delta.lora_B.zero_()
    x = torch.randn(4, 32)
    assert torch.equal(layer(x), layer(x)), "B is zero, so dropout shows nowhere"
    delta.drops_base = True
    assert not torch.equal(layer(x), layer(x)), "HF peft's rule drops the base's input as well"


@pytest.mark.parametrize("kind", KINDS)
def test_merged_equals_unmerged_and_unmerging_gives_the_bits_back(kind: str) -> None:
    backbone = tiny(kind)
    adapter = adapted(kind, backbone, rank=2, targets=["query", "value", "ffn_down", "embedding"])
    ids, mask = batch()
    weights = {n: p.clone() for n, p in backbone.model.named_parameters()}
    with torch.no_grad():
        expected = backbone(ids, mask)
        adapter.merge()
        adapter.merge()  # twice is once
        torch.testing.assert_close(backbone(ids, mask), expected, atol=1e-4, rtol=1e-4)
        assert any(not torch.equal(p, weights[n]) for n, p in backbone.model.named_parameters())
        adapter.unmerge()
        assert torch.equal(backbone(ids, mask), expected)
    for name, parameter in backbone.model.named_parameters():
        assert torch.equal(parameter, weights[name]), name


def test_on_a_quantised_backbone_it_refuses_to_merge() -> None:
    backbone = tiny("bert", quantize="nf4")
    adapter = attach(backbone, DoRA(), seed=0)
    with pytest.raises(PeftlabError, match=r"backbone\.quantize=null"):
        adapter.merge()


def test_a_bf16_backbone_computes_about_the_same() -> None:
    low = tiny("bert", dtype="bfloat16")
    full = tiny("bert")
    full.model.load_state_dict(low.model.state_dict())
    ids, mask = batch()
    adapter, _ = [
        adapted("bert", backbone, targets=["query", "value", "ffn_up", "ffn_down"]) for backbone in (low, full)
    ]
    magnitudes = [p for n, p in adapter.named_parameters() if n.endswith("magnitude")]
    assert {p.dtype for p in magnitudes} == {torch.float32}
    torch.testing.assert_close(low(ids, mask), full(ids, mask), atol=0.02, rtol=0.05)


def test_rows_of_zeros_stay_finite() -> None:
    backbone = tiny("bert")
    with torch.no_grad():
        backbone.model.bert.encoder.layer[0].attention.self.query.weight[3] = 0
    attach(backbone, DoRA(), seed=0)
    logits = backbone(*batch())
    logits.sum().backward()
    assert all(p.grad.isfinite().all() for p in backbone.parameters() if p.requires_grad)


LLAMA_7B = {"model_type": "llama"}
LLAMA_13B = LLAMA_7B | {
    "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40,
    "num_key_value_heads": 40,
}  # fmt: skip
LLAMA3_8B = LLAMA_7B | {"intermediate_size": 14336, "num_key_value_heads": 8}


@pytest.mark.parametrize(
    ("architecture", "rank", "count"),
    [
        (LLAMA_7B, 32, 56_975_360),
        (LLAMA_7B, 16, 28_925_952),
        (LLAMA_13B, 32, 89_190_400),
        (LLAMA_13B, 16, 45_281_280),
        (LLAMA3_8B, 32, 57_409_536),
        (LLAMA3_8B, 16, 29_097_984),
    ],
)
def test_counts_of_the_paper_s_table_1(architecture: dict[str, Any], rank: int, count: int) -> None:
    backbone = TransformerConfig(architecture=architecture).build(2, seed=0, device="meta")
    strategy = DoRA(rank=rank, targets=["query", "key", "value", "ffn_up", "ffn_down"])
    assert strategy.closed_form(backbone) == count
    if (architecture, rank) == (LLAMA_7B, 16):
        assert count_parameters(attach(backbone, strategy, seed=0))["trainable_without_head"] == count


def test_ranks_and_alphas_by_pattern() -> None:
    backbone = tiny("bert")
    strategy = DoRA(targets=["query", "ffn_up"], rank_pattern={"ffn_up": 2}, alpha_pattern={"query": 4.0})
    expected = 2 * (8 * 64 + 32) + 2 * (2 * 96 + 64)
    assert strategy.closed_form(backbone) == expected
    adapter = attach(backbone, strategy, seed=0)
    assert count_parameters(adapter)["trainable_without_head"] == expected
    assert only_delta(first_layer(adapter, "query")).scale == 4.0 / 8
    assert only_delta(first_layer(adapter, "intermediate")).scale == 16.0 / 2
