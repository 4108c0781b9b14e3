"""Where a method works if nobody says: what is usual for the backbone, written down before anything is hashed."""

from __future__ import annotations

from dataclasses import fields

import pytest
import yaml

from peftlab.backbones.text_classifier import TextClassifierConfig
from peftlab.backbones.text_classifier_backbone import TextClassifierBackbone
from peftlab.composition import checked
from peftlab.errors import ConfigError
from peftlab.peft.base import attach, methods
from peftlab.peft.compose import Compose
from peftlab.peft.lora import LoRA
from peftlab.records.identity import run_key
from peftlab.shipped import config_folder
from tests.conftest import TINY, Peftlab, run_folder
from tests.peft.tiny import tiny

OPEN = {name: cls for name, cls in methods() if cls.usual}
BEFORE = {
    "lora": ["query", "value"], "dora": ["query", "value"], "vera": ["query", "value"],
    "adalora": ["query", "key", "value", "attention_output", "ffn_up", "ffn_down"],
    "dynamic_dora": ["query", "key", "value", "attention_output", "ffn_up", "ffn_down"],
    "houlsby": ["attention_output", "ffn_down"], "pfeiffer": ["ffn_down"], "parallel_adapter": ["ffn"],
    "ia3": ["key", "value"],
}  # fmt: skip
"""What the default was when it was a list: keys of runs hold."""


def test_all_methods_that_have_places_are_here() -> None:
    with_targets = {name for name, cls in methods() if {"targets"} & {field.name for field in fields(cls)}}
    assert set(OPEN) == set(BEFORE) == with_targets - {"bitfit", "layernorm"}  # whose null means all of a kind


@pytest.mark.parametrize("name", sorted(OPEN))
def test_a_run_s_key_is_that_of_the_list(name: str) -> None:
    words = [f"peft={name}", "backbone=tiny", "data=imdb_packaged"]
    config = checked(words)
    assert getattr(config.peft, "targets") == BEFORE[name]  # noqa: B009  not every method has them
    explicit = checked([*words, f"peft.targets=[{','.join(BEFORE[name])}]"])
    assert run_key(config) == run_key(explicit)
    on_words = checked([f"peft={name}", "backbone=text_classifier", "data=imdb_packaged"])
    assert getattr(on_words.peft, "targets") == ["hidden"]  # noqa: B009


@pytest.mark.parametrize("name", sorted(OPEN))
def test_every_method_works_on_both_kinds(name: str) -> None:
    method = OPEN[name]()
    for backbone in (tiny("bert"), _words()):
        assert method.select(backbone).targets
        adapter = attach(backbone, method, seed=0)
        kept = adapter.strategy
        assert kept == method.settled(backbone.architecture)
        assert getattr(kept, "targets") is not None  # noqa: B009
        assert getattr(method, "targets") is None  # noqa: B009  the caller's own stays as it is
    file = yaml.safe_load((config_folder() / "peft" / f"{name}.yaml").read_text(encoding="utf-8"))
    assert file["targets"] is None


def _words() -> TextClassifierBackbone:
    config = TextClassifierConfig(embedding_dim=20, hidden_dim=24)
    return config.build(3, seed=0, train_texts=["a fine film", "a dull film"])


def test_each_method_of_a_composition_by_itself() -> None:
    both = Compose(methods=["lora", {"name": "houlsby", "targets": ["ffn_down"]}, "bitfit"])
    settled = both.settled("bert")
    assert [getattr(part, "targets", None) for part in settled.parts] == [["query", "value"], ["ffn_down"], None]
    assert both.settled("bert").settled("bert") == settled
    words = ["peft=compose", "peft.methods=[lora,bitfit]", "backbone=text_classifier", "data=imdb_packaged"]
    assert checked(words).peft.parts[0].targets == ["hidden"]  # type: ignore[attr-defined]


def test_an_empty_list_is_a_mistake_still() -> None:
    with pytest.raises(ConfigError, match=r"peft\.targets is empty"):
        LoRA(targets=[])


def test_lora_on_the_text_classifier_as_a_newcomer_types_it(peftlab: Peftlab, reviews: object) -> None:
    words = [word for word in TINY if not word.startswith("backbone=")]
    done = peftlab("train", *words, f"data.path={reviews}", "backbone=text_classifier", "peft=lora", "name=t",
                   "trainer.max_epochs=1")  # fmt: skip
    assert done.status == 0, done.err
    assert yaml.safe_load((run_folder("t") / "config.yaml").read_text())["peft"]["targets"] == ["hidden"]
