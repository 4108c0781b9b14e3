"""The last layers: which they are in each architecture, counts, and what is refused."""

from __future__ import annotations

import pytest

from peftlab.backbones.text_classifier import TextClassifierConfig
from peftlab.errors import PeftlabError
from peftlab.peft.base import attach
from peftlab.peft.last_layers import LastLayers
from tests.backbones.tiny_backbones import ARCHITECTURES
from tests.peft.published import trainable
from tests.peft.tiny import tiny


def trained(kind: str, **fields: object) -> list[str]:
    backbone = tiny(kind)
    attach(backbone, LastLayers(**fields), seed=0, train_head=False)  # type: ignore[arg-type]
    return [name for name, p in backbone.model.named_parameters() if p.requires_grad]


@pytest.mark.parametrize(
    ("name", "layers", "count"),
    [
        ("gpt2-medium", 2, 25_192_448),  # LoRA paper, table 3: FT-Top2, "25.19M"
        ("bert-base", 1, 7_087_872),  # 4(768² + 768) + 2 · 768 · 3072 + 3072 + 768 + 4 · 768
    ],
)
def test_counts(name: str, layers: int, count: int) -> None:
    assert trainable(LastLayers(layers=layers), name) == count


@pytest.mark.parametrize(
    ("kind", "start", "final"),
    [
        ("bert", "bert.encoder.layer.1.", None),
        ("distilbert", "distilbert.transformer.layer.1.", None),
        ("deberta-v2", "deberta.encoder.layer.1.", None),
        ("modernbert", "model.layers.1.", "model.final_norm.weight"),
        ("gpt2", "transformer.h.1.", "transformer.ln_f.weight"),
        ("gpt_neox", "gpt_neox.layers.1.", "gpt_neox.final_layer_norm.weight"),
        ("llama", "model.layers.1.", "model.norm.weight"),
        ("t5", "transformer.decoder.block.1.", "transformer.decoder.final_layer_norm.weight"),
    ],
)
def test_the_last_block_alone(kind: str, start: str, final: str | None) -> None:
    names = trained(kind, layers=1)
    every = [name for name, _ in tiny(kind).model.named_parameters()]
    assert names == [name for name in every if name.startswith(start)]
    if final is None:
        with pytest.raises(PeftlabError, match=r"peft\.final_norm=true: this .* has no normalisation after"):
            trained(kind, layers=1, final_norm=True)
    else:
        assert final in set(trained(kind, layers=1, final_norm=True)) - set(names)


def test_debertas_norm_of_relative_positions_is_not_a_final_norm() -> None:
    architecture = {"model_type": "deberta-v2", **ARCHITECTURES["deberta-v2"], "norm_rel_ebd": "layer_norm"}
    backbone = tiny("deberta-v2", architecture=architecture)
    assert backbone.model.deberta.encoder.LayerNorm is not None
    with pytest.raises(PeftlabError, match=r"'deberta\.encoder\.layer': LayerNorm"):
        attach(backbone, LastLayers(layers=1, final_norm=True), seed=0)


def test_all_layers_are_allowed_and_one_more_is_not() -> None:
    assert {name.split(".")[3] for name in trained("bert", layers=2)} == {"0", "1"}
    with pytest.raises(PeftlabError, match=r"peft\.layers=3 is more than this bert has: 2 blocks"):
        trained("bert", layers=3)


def test_shared_layers_are_refused() -> None:
    with pytest.raises(PeftlabError, match="albert runs its 2 layers on 1 shared block "):
        trained("albert", layers=1)


def test_a_model_without_blocks_is_refused() -> None:
    backbone = TextClassifierConfig().build(2, seed=0, train_texts=["a b c"])
    with pytest.raises(PeftlabError, match="text_classifier has no list of blocks"):
        attach(backbone, LastLayers(), seed=0)


def test_a_quantised_backbone_is_refused() -> None:
    with pytest.raises(PeftlabError, match=r"backbone\.quantize=nf4"):
        attach(tiny("bert", quantize="nf4"), LastLayers(), seed=0)
