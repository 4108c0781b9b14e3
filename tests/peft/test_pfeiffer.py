"""Pfeiffer adapters: the one place a layer, and the papers' counts; the rest is tested with Houlsby's."""

from __future__ import annotations

from typing import Any

import pytest

from peftlab.peft.base import attach
from peftlab.peft.pfeiffer import Pfeiffer
from tests.peft.published import trainable
from tests.peft.tiny import tiny


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
