"""Pfeiffer adapters: places, against the library ``adapters`` too, and counts; the rest is tested with Houlsby's."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForSequenceClassification

import peftlab
from peftlab.errors import PeftlabError
from peftlab.peft.base import attach
from peftlab.peft.houlsby import Houlsby
from peftlab.peft.pfeiffer import Pfeiffer
from tests.peft.adapters_library import make, numbers
from tests.peft.plain_adapters import compare_with_plain, plain
from tests.peft.published import trainable
from tests.peft.tiny import batch, tiny


@pytest.mark.parametrize(
    ("name", "bottleneck", "fields", "count"),
    [
        ("roberta-base", 16, {}, 304_320),  # LoRA paper, table 2: one adapter a layer, 0.3M
        ("roberta-base", 48, {}, 894_528),  # 0.9M
        ("roberta-large", 16, {}, 811_392),  # 0.8M
        ("gpt2-medium", 6, {"layer_norm": True}, 368_784),  # LoRA paper, table 3: Adapter-L, 0.37M
        ("gpt2-medium", 224, {"layer_norm": True}, 11_089_152),  # 11.09M
        ("gpt2-large", 8, {"layer_norm": True}, 875_808),  # 0.88M
        ("gpt2-large", 248, {"layer_norm": True}, 23_002_848),  # 23.00M
        ("llama-7b", 256, {"bias": False}, 67_108_864),  # DoRA paper, table 1: "Series", 0.99 %
    ],
)
def test_published_counts(name: str, bottleneck: int, fields: dict[str, Any], count: int) -> None:
    assert trainable(Pfeiffer(bottleneck=bottleneck, reduction_factor=None, **fields), name) == count


@pytest.mark.parametrize(
    ("kind", "place"),
    [("bert", "layer.{}.output.dense"), ("gpt2", "h.{}.mlp.c_proj"), ("modernbert", "layers.{}.mlp.Wo")],
)
def test_one_adapter_a_layer_behind_the_feed_forward(kind: str, place: str) -> None:
    adapter = attach(tiny(kind), Pfeiffer(), seed=0, train_head=False)
    names = {name.partition(".deltas.")[0] for name, _ in adapter.named_parameters()}
    assert names == {placed.name for placed in adapter.placed()}
    assert len(names) == len(adapter.deltas()) == 2
    assert all(name.endswith(place.format(index)) for index, name in enumerate(sorted(names)))


NORMS = {
    "bert": "bert.encoder.layer.{}.output.LayerNorm",
    "deberta": "deberta.encoder.layer.{}.output.LayerNorm",
    "distilbert": "distilbert.transformer.layer.{}.output_layer_norm",
    "xlnet": "transformer.layer.{}.ff.layer_norm",
}


@pytest.mark.parametrize("kind", NORMS)
def test_mad_x_against_plain_hooks(kind: str) -> None:
    """Behind the normalisation, which is then applied to the sum with what it had read."""

    def hooks(model: nn.Module, weights: Any) -> None:
        for index in range(2):
            name = NORMS[kind].format(index)
            norm, own = model.get_submodule(name), weights(f"{name}.deltas.all")

            def hook(norm: Any, inputs: Any, out: Tensor, own: Any = own) -> Tensor:
                eps = getattr(norm, "eps", None) or norm.variance_epsilon  # DeBERTa has a class of its own
                again = inputs[0] + plain(out, own, activation="gelu")
                return F.layer_norm(again, out.shape[-1:], norm.weight, norm.bias, eps)

            norm.register_forward_hook(hook)

    strategy = Pfeiffer(placement="mad_x", bottleneck=5, reduction_factor=None)
    compare_with_plain(kind, strategy, hooks, padded=kind != "xlnet")


def test_mad_x_starts_as_the_backbone_and_counts_as_the_other_place() -> None:
    for kind in ("albert", "bert", "big_bird", "deberta-v2", "electra", "roberta", "xlm-roberta"):
        backbone, strategy = tiny(kind), Pfeiffer(placement="mad_x")
        before = backbone(*batch())
        adapter = attach(backbone, strategy, seed=0, train_head=False)
        assert torch.equal(backbone(*batch()), before), kind
        assert sum(p.numel() for _, p in adapter.named_parameters()) == Pfeiffer().closed_form(tiny(kind)), kind
        adapter.remove()
        assert torch.equal(backbone(*batch()), before), kind


def test_mad_x_where_it_cannot_be() -> None:
    with pytest.raises(PeftlabError, match="llama is not known for it"):
        attach(tiny("llama"), Pfeiffer(placement="mad_x"), seed=0)
    with pytest.raises(ValueError, match=r"peft\.targets=\['query'\] does not go with peft\.placement=mad_x"):
        Pfeiffer(placement="mad_x", targets=["query"])
    with pytest.raises(PeftlabError, match=r"peft\.bottleneck=40"):
        attach(tiny("bert"), Pfeiffer(placement="mad_x", bottleneck=40, reduction_factor=None), seed=0)


VALUES: dict[str, Any] = json.loads(Path(make.__file__).with_name("values.json").read_text(encoding="utf-8"))
STRATEGIES: dict[str, Any] = {
    "mad_x": partial(Pfeiffer, placement="mad_x"),
    "projection": Pfeiffer,
    "houlsby": Houlsby,
}
PARTS = {"down": "adapter_down.0.weight", "down_bias": "adapter_down.0.bias", "up": "adapter_up.weight",
         "up_bias": "adapter_up.bias"}  # fmt: skip


def name_there(kind: str, name: str) -> str:
    """What the library calls the tensor that is ``name`` here."""
    place, _, part = name.partition(".deltas.all.")
    if kind == "distilbert":
        layer, which = re.match(r"(.*\.layer\.\d+)\.(.*)", place).groups()  # type: ignore[union-attr]
        return f"{layer}.{'attention' if which.startswith('attention') else 'output'}_adapters.adapters.a.{PARTS[part]}"
    return f"{place.rpartition('.')[0]}.adapters.a.{PARTS[part]}"


@pytest.mark.parametrize("kind", numbers.KINDS)
@pytest.mark.parametrize("place", STRATEGIES)
def test_logits_are_those_of_the_library_adapters(kind: str, place: str) -> None:
    """The same weights, by their names, in its environment and here; both compute in float64."""
    for activation in numbers.ACTIVATIONS:
        config = AutoConfig.for_model(kind, **numbers.KINDS[kind])
        config._attn_implementation = "eager"
        model = AutoModelForSequenceClassification.from_config(config).double().eval()
        make.fill(model)
        assert make.logits(model) == pytest.approx(np.array(VALUES[f"{kind}, no adapter"]), rel=1e-9)
        strategy = STRATEGIES[place](bottleneck=numbers.WIDTH, reduction_factor=None, activation=activation)
        adapter = peftlab.attach(model, strategy, seed=0)
        model.double().eval()
        with torch.no_grad():
            for name, parameter in adapter.named_parameters():
                parameter.copy_(torch.tensor(numbers.filled(name_there(kind, name), parameter.shape)))
        expected = np.array(VALUES[f"{kind}, {place}, {activation}"])
        assert make.logits(model) == pytest.approx(expected, rel=1e-9)
