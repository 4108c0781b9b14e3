"""A checkpoint's head keeps its rows by the names of its classes, and what else lies in its folder is left alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

from peftlab.backbones.head_labels import match_head
from peftlab.backbones.transformer import TransformerConfig
from peftlab.backbones.transformer_backbone import TransformerBackbone
from peftlab.errors import BackboneError
from tests.backbones.test_text_is_text import wordpiece
from tests.conftest import Peftlab, run_folder

THEIRS = ["World", "Sports", "Sci/Tech"]
IDS, MASK = torch.tensor([[2, 7, 9, 3]]), torch.ones(1, 4, dtype=torch.int64)


@pytest.fixture
def folder(scratch: Path) -> Path:
    """A small BERT with three named classes, and its tokenizer."""
    tokenizer = wordpiece()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        id2label=dict(enumerate(THEIRS)), label2id={name: i for i, name in enumerate(THEIRS)},
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(scratch / "model")
    tokenizer.save_pretrained(scratch / "model")
    return scratch / "model"


def built(folder: Path, names: list[str], seed: int = 0) -> TransformerBackbone:
    backbone = TransformerConfig(name_or_path=str(folder)).build(len(names), seed=seed).eval()
    match_head(backbone, names, seed=seed)
    return backbone


def answers(backbone: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = backbone(IDS, MASK)[0]
    return found


def theirs(folder: Path) -> Tensor:
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=MASK).logits[0]


def test_rows_follow_their_names(folder: Path) -> None:
    backbone = built(folder, ["sci/tech", "World ", "SPORTS"])
    torch.testing.assert_close(answers(backbone), theirs(folder)[[2, 0, 1]])
    assert backbone.provenance["head"] == "the checkpoint's, matched by the names of its classes"
    assert "head_classes" not in backbone.provenance


def test_other_classes_get_a_new_head(folder: Path) -> None:
    names = ["bad", "good", "neither"]
    backbone, again = built(folder, names, seed=3), built(folder, names, seed=3)
    assert backbone.provenance["head"] == "new: the checkpoint's knew other classes (Sci/Tech, Sports, World)"
    head, old = backbone.model.get_parameter("classifier.weight"), load_file(folder / "model.safetensors")
    assert not torch.equal(head, old["classifier.weight"])
    assert torch.equal(head, again.model.get_parameter("classifier.weight"))
    assert not torch.equal(head, built(folder, names, seed=4).model.get_parameter("classifier.weight"))
    assert abs(float(head.detach().std()) - 0.02) < 0.01, "as transformers draws a head"
    trunk = backbone.model.get_parameter("bert.encoder.layer.0.output.dense.weight")
    assert torch.equal(trunk, old["bert.encoder.layer.0.output.dense.weight"])


def test_another_number_of_classes_is_a_new_head_as_ever(folder: Path) -> None:
    assert "head" not in built(folder, ["bad", "good"]).provenance


def test_classes_without_names_go_by_position(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {str(i): f"LABEL_{i}" for i in range(3)}
    (folder / "config.json").write_text(json.dumps(config))
    backbone = built(folder, ["bad", "good", "neither"])
    torch.testing.assert_close(answers(backbone), theirs(folder))
    assert "by position" in backbone.provenance["head"]


def test_an_adapter_beside_the_weights_is_not_put_on_top(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    plain = theirs(folder)
    model = get_peft_model(BertForSequenceClassification.from_pretrained(folder), LoraConfig(target_modules=["query"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(1.0)
    model.save_pretrained(folder)
    assert (folder / "adapter_config.json").exists()
    torch.testing.assert_close(answers(built(folder, THEIRS)), plain)
    assert "holds an adapter beside the model. The model is read without it" in capfd.readouterr().err


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_weights_that_are_no_numbers(folder: Path, value: float) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = "bert.encoder.layer.0.output.dense.weight"
    tensors[name][3, 5] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BackboneError, match=rf"1 of the 512 numbers of '{name}' in .* are infinite or no numbers"):
        built(folder, THEIRS)


def test_large_weights_are_numbers(folder: Path) -> None:
    """Whatever their sum is."""
    tensors = load_file(folder / "model.safetensors")
    tensors["bert.encoder.layer.0.output.dense.weight"].fill_(torch.finfo(torch.float32).max)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert built(folder, THEIRS).model is not None


def test_a_run_that_starts_from_another_keeps_that_runs_head(peftlab: Peftlab, folder: Path, scratch: Path) -> None:
    """The earlier run has put the rows into the order of its labels: they are not turned a second time."""
    lines = [
        f"{text}\t{label}" for text, label in [("so it was", "sci/tech"), ("fine", "World"), ("dull", "Sports")] * 8
    ]
    (scratch / "topics.tsv").write_text("\n".join(["text\tlabel", *lines]), encoding="utf-8")
    common = (
        "train", "backbone=bert_base", f"backbone.name_or_path={folder}", "data=text_files", "data.path=topics.tsv",
        "data.labels=[sci/tech,World,Sports]", "data.max_length=16", "trainer.max_epochs=1", "logger=none",
        "optim.lr=1e-12", "peft=head",
    )  # fmt: skip
    assert peftlab(*common, "name=first").status == 0
    first = run_folder("first")
    assert peftlab(*common, "name=second", f"backbone.from_run={first}").status == 0
    old = load_file(folder / "model.safetensors")["classifier.weight"]
    for name in ("first", "second"):
        head = load_file(run_folder(name) / "adapter.safetensors")["classifier.weight"]
        torch.testing.assert_close(head, old[[2, 0, 1]])
