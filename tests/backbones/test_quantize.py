from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from peftlab.backbones.quantize import logical_size, quantize, store_as_floats, stored_bytes
from peftlab.backbones.roles import find_targets
from peftlab.backbones.transformer_backbone import TransformerBackbone
from peftlab.errors import BackboneError
from tests.backbones.tiny_backbones import batch, shake, tiny, tiny_config

TEXTS = ["a good film, with a text of some length", "bad"]
TOLERANCE = {"nf4": 0.15, "fp4": 0.2, "int8": 0.05}  # relative error of a layer's output


def pair(model_type: str, kind: str) -> tuple[TransformerBackbone, TransformerBackbone]:
    """The same weights in float32 and quantised."""
    plain = tiny(model_type)
    shake(plain)
    quantised = copy.deepcopy(plain)
    quantize(quantised.model, kind, keep=quantised.head_modules(), device=torch.device("cpu"))
    return plain, quantised


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama", "modernbert", "t5"])
@pytest.mark.parametrize("kind", TOLERANCE)
def test_layers_compute_nearly_the_same_and_pass_gradients(model_type: str, kind: str) -> None:
    plain, quantised = pair(model_type, kind)
    replaced = [(n, m) for n, m in quantised.model.named_modules() if type(m).__module__.startswith("bitsandbytes")]
    assert replaced
    generator = torch.Generator().manual_seed(0)
    for name, layer in replaced:
        original = plain.model.get_submodule(name)
        x = torch.randn(2, 5, layer.in_features, generator=generator)
        inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
        expected, actual = original(inputs[0]), layer(inputs[1])
        assert (expected - actual).norm() / expected.norm() < TOLERANCE[kind], name
        expected.square().sum().backward()
        actual.square().sum().backward()
        assert (inputs[0].grad - inputs[1].grad).norm() / inputs[0].grad.norm() < 2 * TOLERANCE[kind], name
        assert not layer.weight.requires_grad


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("width", [32, 64, 96, 128])
def test_four_bit_weights_are_right_at_any_width(kind: str, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(40, width, generator=generator)
    model = nn.Sequential(nn.Linear(width, 40, bias=False))
    model[0].weight.data.copy_(weight)
    quantize(model, kind, keep=[], device=torch.device("cpu"))
    error = model(torch.eye(width)).T - weight
    assert error.norm() / weight.norm() < 0.15
    assert error.abs().max() < 0.5 * weight.abs().max()


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_bytes_that_are_called_floats_are_the_same_weights(kind: str) -> None:
    _, quantised = pair("llama", kind)
    ids, mask = batch(quantised, TEXTS)
    before, stored = quantised(ids, mask), stored_bytes(quantised.model)
    store_as_floats(quantised.model)
    assert all(parameter.is_floating_point() for parameter in quantised.model.parameters())
    assert torch.equal(quantised(ids, mask), before)
    assert stored_bytes(quantised.model) == stored


def test_widths_that_blocks_do_not_divide_are_refused() -> None:
    model = nn.Sequential(nn.Linear(100, 40))
    with pytest.raises(BackboneError, match=r"100 inputs.*backbone.quantize=int8"):
        quantize(model, "nf4", keep=[], device=torch.device("cpu"))
    assert quantize(model, "int8", keep=[], device=torch.device("cpu")) == ["0"]
    with pytest.raises(BackboneError, match="no linear layer outside its head"):
        quantize(nn.Sequential(nn.ReLU()), "nf4", keep=[], device=torch.device("cpu"))


@pytest.mark.parametrize("kind", TOLERANCE)
def test_training_goes_through_the_whole_model(kind: str) -> None:
    state = torch.get_rng_state()
    backbone = tiny_config("gpt2", quantize=kind).build(3, seed=0)
    assert torch.equal(state, torch.get_rng_state())
    assert backbone.provenance["quantize"] == kind
    embedding = backbone.model.transformer.wte.weight.requires_grad_()
    backbone(*batch(backbone, TEXTS)).sum().backward()
    assert embedding.grad is not None
    assert embedding.grad.abs().sum() > 0
    assert all(module.training for module in backbone.modules())


@pytest.mark.parametrize("kind", TOLERANCE)
def test_evaluating_in_between_changes_nothing(kind: str) -> None:
    backbone = tiny("bert", quantize=kind)
    ids, mask = batch(backbone, TEXTS)
    backbone.train()
    for module in backbone.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    before = backbone(ids, mask)
    backbone.eval()
    with torch.no_grad():
        between = backbone(ids, mask)
    backbone.train()
    assert torch.equal(before, backbone(ids, mask))
    torch.testing.assert_close(before.detach(), between, atol=1e-3, rtol=0)


@pytest.mark.parametrize("model_type", ["roberta", "distilbert", "gpt2", "t5"])
def test_the_head_stays_in_float(model_type: str) -> None:
    backbone = tiny(model_type, quantize="nf4")
    assert backbone.head_parameters()
    assert all(type(p) is nn.Parameter and p.dtype == torch.float32 for _, p in backbone.head_parameters())


def test_t5_layers_whose_dtype_is_read_stay_in_float() -> None:
    backbone = tiny("t5", quantize="nf4")
    assert {type(t.module) for t in find_targets(backbone, ["ffn_down"])} == {nn.Linear}
    assert {type(t.module).__name__ for t in find_targets(backbone, ["query", "ffn_up"])} == {"Linear4bit"}


def test_roles_and_slices_survive() -> None:
    plain, quantised = tiny("gpt2"), tiny("gpt2", quantize="int8")
    roles = ["query", "value", "ffn_up", "embedding"]
    expected, actual = find_targets(plain, roles), find_targets(quantised, roles)
    assert [(t.name, t.role, t.output_slice) for t in expected] == [(t.name, t.role, t.output_slice) for t in actual]


def test_sizes() -> None:
    plain, four, eight = tiny("llama"), tiny("llama", quantize="nf4"), tiny("llama", quantize="int8")
    elements = sum(p.numel() for p in plain.parameters())
    assert stored_bytes(plain.model) >= 4 * elements
    for backbone in (four, eight):
        assert sum(map(logical_size, backbone.parameters())) == backbone.provenance["parameters"] == elements
    linear = sum(m.weight.numel() for n, m in plain.model.named_modules() if isinstance(m, nn.Linear) and n != "score")
    saved_by_eight = stored_bytes(plain.model) - stored_bytes(eight.model)
    rows = sum(m.out_features for n, m in plain.model.named_modules() if isinstance(m, nn.Linear) and n != "score")
    assert saved_by_eight == 3 * linear - 4 * rows
    assert stored_bytes(plain.model) - stored_bytes(four.model) > 0


def test_meta_keeps_full_shapes() -> None:
    backbone = tiny_config("bert", quantize="nf4").build(3, seed=0, device="meta")
    assert sum(p.numel() for p in backbone.parameters()) == tiny("bert").provenance["parameters"]
