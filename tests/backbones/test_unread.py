"""``backbone.skip_unread``: the last layer for its first position alone; what comes out is the whole layer's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peftlab.backbones import fast_dropout
from peftlab.backbones.transformer import TransformerConfig
from peftlab.backbones.unread import BERT_LIKE, DISTILBERT
from peftlab.errors import BackboneError, PeftlabError
from peftlab.peft.adapter import Adapter
from peftlab.peft.base import PEFTStrategy, attach, methods
from peftlab.peft.full import FullFineTuning
from peftlab.peft.head import HeadOnly
from peftlab.peft.loreft import LoReFT
from peftlab.peft.prefix_tuning import PrefixTuning
from peftlab.training.trunk import FrozenTrunk
from tests.backbones.tiny_backbones import batch, shake, tiny, tiny_config
from tests.conftest import TINY, Peftlab, run_folder

SKIPS = {"skip_unread": True}
TEXTS = ["a fine film", "a dull and much too long film", "so so", "x"]
LABELS = torch.tensor([0, 1, 2, 0])
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 300,
}
DISTIL = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "vocab_size": 300}
CLOSE = {"atol": 2e-6, "rtol": 2e-5}


def of_type(model_type: str, **more: Any) -> Any:
    sizes: dict[str, Any] = DISTIL if model_type == DISTILBERT else SIZES
    config = TransformerConfig(architecture={"model_type": model_type, **sizes}, dropout=0.0, **more)
    return config.build(3, seed=0)


def step(adapter: Adapter) -> list[Tensor]:
    """Loss and gradients of everything that trains."""
    torch.manual_seed(0)
    loss = nn.functional.cross_entropy(adapter.backbone(*batch(adapter.backbone, TEXTS)), LABELS)
    return [loss.detach(), *torch.autograd.grad(loss, adapter.parameters(beside=True), materialize_grads=True)]


def assert_alike(whole: Adapter, skipping: Adapter) -> None:
    for a, b in zip(step(whole), step(skipping), strict=True):
        torch.testing.assert_close(b, a, **CLOSE)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("model_type", [*BERT_LIKE, DISTILBERT])
def test_steps_are_those_of_the_whole_layer(model_type: str, attention: str) -> None:
    sides = []
    for more in ({}, SKIPS):
        backbone = of_type(model_type, attention=attention, **more)
        shake(backbone)
        sides.append(attach(backbone.train(), FullFineTuning(), seed=0))
    whole, skipping = sides
    assert list(whole.backbone.state_dict()) == list(skipping.backbone.state_dict())
    assert_alike(whole, skipping)


@pytest.mark.parametrize("model_type", ["bert", DISTILBERT])
def test_nothing_else_is_computed(model_type: str) -> None:
    """Keys and values of all positions; whatever else the last layer multiplies is of one."""
    backbone = of_type(model_type, **SKIPS)
    last = backbone.model.base_model
    last = (last.transformer if model_type == DISTILBERT else last.encoder).layer[-1]
    seen: dict[str, int] = {}
    for name, module in last.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda _, __, out, name=name: seen.__setitem__(name, out.shape[1]))
    ids, mask = batch(backbone, TEXTS)
    backbone(ids, mask)
    assert len(seen) == 6
    for name, positions in seen.items():
        assert positions == (ids.shape[1] if name.endswith(("key", "value", "k_lin", "v_lin")) else 1), name


METHODS = [name for name in dict(methods()) if name not in ("import", "loreft")]
"""Importing needs a folder."""


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_what_it_would(name: str) -> None:
    method: PEFTStrategy = dict(methods())[name]()
    sides = []
    for more in ({}, SKIPS):
        backbone = tiny("bert", dropout=0.0, **more)
        shake(backbone)
        adapter = attach(backbone.train(), method, seed=0)
        for module in backbone.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0  # a method's own, whose draws are one for each position
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():  # away from its start, where most change nothing
            for parameter in adapter.parameters(beside=True):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        sides.append(adapter)
    assert_alike(*sides)


def test_it_goes_with_a_prefix_checkpointing_and_fast_dropout() -> None:
    for more in ({"gradient_checkpointing": True}, {"fast_dropout": True}):
        sides = []
        for skips in ({}, SKIPS):
            backbone = tiny("bert", dropout=0.0, **more, **skips)
            shake(backbone)
            sides.append(attach(backbone.train(), PrefixTuning(length=3), seed=0))
        assert_alike(*sides)


def test_attention_draws_masks_for_what_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny("bert", dropout=0.3, fast_dropout=True, **SKIPS).train()
    shapes: list[tuple[int, ...]] = []
    draw = fast_dropout.keep_mask

    def noted(shape: tuple[int, ...], p: float) -> Tensor:
        shapes.append(shape)
        return draw(shape, p)

    monkeypatch.setattr(fast_dropout, "keep_mask", noted)
    ids, mask = batch(backbone, TEXTS)
    torch.manual_seed(3)
    first = backbone(ids, mask)
    rows, length = ids.shape
    assert [shape[2:] for shape in shapes if len(shape) == 4] == [(length, length), (1, length)]
    assert shapes[-1][:2] in ((rows, 1), (rows, 32))
    torch.manual_seed(3)
    assert torch.equal(backbone(ids, mask), first)
    assert not torch.equal(backbone(ids, mask), first)


def test_a_frozen_trunk_keeps_first_positions() -> None:
    backbone = tiny("bert", dropout=0.0, **SKIPS)
    shake(backbone)
    adapter = attach(backbone.train(), HeadOnly(), seed=0)
    given = batch(backbone, TEXTS)
    trunk = FrozenTrunk(adapter, given)
    assert trunk.kept == "first"
    expected = backbone(*given)
    with trunk.given(trunk.compute(*given).clone()):
        torch.testing.assert_close(backbone(*given), expected, **CLOSE)


@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("gpt2", {}, r"\(bert, camembert, distilbert, electra, ernie, roberta, xlm-roberta\), .* is a gpt2"),
        ("deberta-v2", {}, "is a deberta-v2"),
        ("modernbert", {}, "is a modernbert"),
        ("bert", {"architecture": {"model_type": "bert", **SIZES, "is_decoder": True}}, "is a bert, as a decoder"),
        ("bert", {"pooling": "mean"}, "backbone.pooling=mean reads them all"),
    ],
)
def test_where_more_is_read_it_is_refused(name: str, more: dict[str, Any], said: str) -> None:
    with pytest.raises(BackboneError, match=said) as caught:
        tiny_config(name, **more, **SKIPS).build(3, seed=0, device="meta")
    assert "backbone.skip_unread=true" in str(caught.value)
    assert "false" in str(caught.value)


def test_a_language_model_reads_all() -> None:
    with pytest.raises(BackboneError, match="skip_unread=true: a language model says a next token after each token"):
        tiny_config("llama", **SKIPS).build(1, seed=0, head="own")


def test_edits_of_tokens_are_refused() -> None:
    with pytest.raises(PeftlabError, match=r"Set backbone\.skip_unread=false"):
        attach(tiny("bert", **SKIPS), LoReFT(), seed=0)


def test_a_run_learns_what_it_learns_without(peftlab: Peftlab, reviews: Path) -> None:
    common = [*TINY, f"data.path={reviews}", "peft=lora", "backbone.dropout=0"]
    assert peftlab("train", *common, "name=whole").status == 0
    assert peftlab("train", *common, "name=skipping", "backbone.skip_unread=true").status == 0
    facts = [json.loads((run_folder(name) / "record.json").read_text()) for name in ("whole", "skipping")]
    for mine, theirs in zip(facts[0]["history"], facts[1]["history"], strict=True):
        for figure in ("train/loss", "validation/loss"):
            assert abs(mine[figure] - theirs[figure]) < 1e-5
    assert facts[0]["key"] != facts[1]["key"]
    assert peftlab("verify", "--rerun-eval", run_folder("skipping")).status == 0
