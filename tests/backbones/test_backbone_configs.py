"""Every YAML of conf/backbone: its keys are the fields, its counts and texts are true."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from peftlab.backbones.config import BackboneConfig

FOLDER = Path(__file__).parents[2] / "conf" / "backbone"
FILES = sorted(FOLDER.glob("*.yaml"))


def read(path: Path) -> tuple[type[BackboneConfig], dict[str, Any]]:
    fields = OmegaConf.to_container(OmegaConf.load(path))
    module, _, name = fields.pop("_target_").rpartition(".")
    return getattr(importlib.import_module(module), name), fields


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_keys_are_the_fields_and_the_config_can_be_made(path: Path) -> None:
    kind, fields = read(path)
    assert set(fields) == {field.name for field in dataclasses.fields(kind)}
    assert isinstance(kind(**fields), BackboneConfig)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_says_what_it_is_and_how_to_run_it(path: Path) -> None:
    comment = path.read_text().partition("_target_")[0]
    assert f"backbone={path.stem}" in comment
    if path.stem == "hf":  # any model has as many as it has
        return
    assert "M parameters" in comment or "B parameters" in comment or "thousand parameters" in comment


def test_those_that_need_no_hub_build() -> None:
    kind, fields = read(FOLDER / "tiny.yaml")
    backbone = kind(**fields).build(2, seed=0)
    assert backbone.provenance["parameters"] == 43_010
    kind, fields = read(FOLDER / "text_classifier.yaml")
    backbone = kind(**fields).build(2, seed=0, train_texts=["a text"])
    assert backbone.tokenizer.vocabulary == ["<pad>", "<unk>", "a", "text"]


ARCHITECTURES = {
    "distilbert": ({"model_type": "distilbert"}, 66_955_010),
    "bert_base": ({"model_type": "bert"}, 109_483_778),
    "roberta_large": (
        {
            "model_type": "roberta",
            "vocab_size": 50265,
            "max_position_embeddings": 514,
            "type_vocab_size": 1,
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
        },
        355_361_794,
    ),
    "gpt2": ({"model_type": "gpt2"}, 124_441_344),
    "llama": ({"model_type": "llama"}, 6_607_351_808),
    "deberta_v3_base": (
        {
            "model_type": "deberta-v2",
            "vocab_size": 128100,
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
            "relative_attention": True,
            "position_buckets": 256,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "pos_att_type": "p2c|c2p",
            "position_biased_input": False,
            "type_vocab_size": 0,
        },
        184_423_682,
    ),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_counts_in_the_comments(name: str) -> None:
    from peftlab.backbones.transformer import TransformerConfig

    architecture, expected = ARCHITECTURES[name]
    attention = "eager" if name.startswith("deberta") else "sdpa"
    config = TransformerConfig(architecture=architecture, attention=attention)
    assert config.build(2, seed=0, device="meta").provenance["parameters"] == expected
    said = f"{expected / 1e9:.1f} B" if expected > 1e9 else f"{expected / 1e6:.1f} M"
    assert said in (FOLDER / f"{name}.yaml").read_text()
