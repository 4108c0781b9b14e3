"""Folders that cannot be imported: each is refused in one line that says why."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors.torch
import torch

from peftlab.errors import PeftlabError
from peftlab.peft.adalora import AdaLoRA
from peftlab.peft.base import attach
from peftlab.peft.imported import ImportedAdapter
from peftlab.peft.lora import LoRA
from peftlab.peft.prompt_tuning import PromptTuning
from tests.backbones.tiny_backbones import tiny
from tests.conftest import TINY, Peftlab
from tests.interop.exchange import N, change_config, peft_saves, tensors_of, trained, we_import, write

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture
def folder(scratch: Path) -> Path:
    """A good one: LoRA on the query of every layer of a BERT, and a head of three classes."""
    return write(trained("bert", LoRA(rank=4, targets=["query"])), scratch / "adapter")


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = tensors_of(folder)
    change(tensors)
    safetensors.torch.save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def _to_bin(folder: Path) -> None:
    torch.save(tensors_of(folder), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()


def _cut(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-10])


A = "base_model.model.bert.encoder.layer.1.attention.self.query.lora_A.weight"
BREAK: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda f: (f / CONFIG).unlink(), "has no adapter_config.json"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "has no adapter_model.safetensors"),
    "a pickle": (_to_bin, "only adapter_model.bin, a pickle, which can run code"),
    "damaged JSON": (lambda f: (f / CONFIG).write_text('{"peft_type": "LO'), "It is damaged"),
    "a JSON list": (lambda f: (f / CONFIG).write_text("[1]"), "says no peft_type"),
    "no type": (lambda f: (f / CONFIG).write_text('{"r": 4}'), "says no peft_type"),
    "not UTF-8": (lambda f: (f / CONFIG).write_bytes(b"\xff\xfe\x00"), "It is damaged"),
    "cut weights": (_cut, "It is damaged or cut short"),
    "empty weights": (lambda f: rewrite(f, dict.clear), "holds no tensors"),
    "an unknown type": (lambda f: change_config(f, peft_type="OFT"), "type OFT, which has no counterpart here"),
    "another type": (lambda f: change_config(f, peft_type="IA3"), "has no tensor ia3_l"),
    "DoRA without magnitude": (lambda f: change_config(f, use_dora=True), "lacks '.*lora_magnitude_vector'"),
    "PiSSA": (lambda f: change_config(f, init_lora_weights="pissa"), "init_lora_weights=pissa, which changes"),
    "OLoRA": (lambda f: change_config(f, init_lora_weights="olora"), "init_lora_weights=olora, which changes"),
    "lora_bias": (lambda f: change_config(f, lora_bias=True), "sets lora_bias=true"),
    "layer_replication": (
        lambda f: change_config(f, layer_replication=[[0, 2]]),
        r"sets layer_replication=\[\[0, 2\]\]",
    ),
    "trainable tokens": (lambda f: change_config(f, trainable_token_indices=[1]), "sets trainable_token_indices"),
    "an option of the future": (lambda f: change_config(f, new_maths={"a": 1}), "sets new_maths"),
    "CorDA": (lambda f: change_config(f, corda_config={"corda_method": "kpm"}), "sets corda_config"),
    "a missing tensor": (lambda f: rewrite(f, lambda t: t.pop(A.replace("_A", "_B"))), "lacks '.*lora_B.weight'"),
    "a missing layer": (
        lambda f: rewrite(f, lambda t: [t.pop(n) for n in (A, A.replace("_A", "_B"))]),
        "adapts 'bert.encoder.layer.1.attention.self.query', but .* has no tensors for it",
    ),
    "another shape": (lambda f: rewrite(f, lambda t: t.update({A: torch.zeros(4, 16)})), "is .4, 16. in the file"),
    "a module too many": (
        lambda f: rewrite(f, lambda t: t.update({"base_model.model.bert.embeddings.LayerNorm.weight": torch.ones(32)})),
        "also holds 'base_model.model.bert.embeddings.LayerNorm.weight'",
    ),
    "other classes": (
        lambda f: rewrite(f, lambda t: t.update({"base_model.model.classifier.weight": torch.zeros(5, 32)})),
        r"the head in .* is \(5, 32\) in the file and \(3, 32\) here",
    ),
    "half a head": (lambda f: rewrite(f, lambda t: t.pop("base_model.model.classifier.bias")), "'classifier.bias' of"),
    "a head of another model": (
        lambda f: rewrite(
            f,
            lambda t: (
                (t.pop("base_model.model.classifier.bias"), t.pop("base_model.model.classifier.weight"))
                and t.update({"base_model.model.score.weight": torch.zeros(3, 32)})
            ),
        ),
        "its head is 'base_model.model.score.weight'",
    ),
    "a rank that cannot be": (
        lambda f: rewrite(f, lambda t: t.update({A: torch.zeros(40, 32), A.replace("_A", "_B"): torch.zeros(32, 40)})),
        "is above what",
    ),
    "a negative alpha": (lambda f: change_config(f, lora_alpha=-3), "config.json says lora_alpha=-3, .* above 0"),
    "an alpha of letters": (lambda f: change_config(f, lora_alpha="abc"), 'says lora_alpha="abc", .* a number above 0'),
    "no alpha": (lambda f: change_config(f, lora_alpha=float("nan")), "says lora_alpha=NaN"),
    "rank 0": (lambda f: change_config(f, r=0), "says r=0, .* a whole number from 1 on"),
    "dropout of everything": (lambda f: change_config(f, lora_dropout=7), "says lora_dropout=7"),
    "an unknown bias": (lambda f: change_config(f, bias="foo"), 'says bias="foo", .* none, all or lora_only'),
    "a list of alphas": (lambda f: change_config(f, alpha_pattern=[1]), r"config.json says alpha_pattern=\[1\]"),
    "half a regex": (lambda f: change_config(f, alpha_pattern={"q(": 3}), r'says alpha_pattern=\{"q\(": 3\}'),
    "alphas of letters": (lambda f: change_config(f, alpha_pattern={"q": "a"}), "says alpha_pattern="),
    "half a regex for targets": (lambda f: change_config(f, target_modules="q("), 'says target_modules="q\\("'),
    "a number for targets": (lambda f: change_config(f, target_modules=3), "says target_modules=3, .* one regex"),
    "layers of letters": (lambda f: change_config(f, layers_to_transform=["1"]), "says layers_to_transform="),
    "a rank without tensors": (lambda f: rewrite(f, lambda t: t.update({A: torch.zeros(0, 32)})), "is .0, 32., and"),
    "a single number": (
        lambda f: rewrite(f, lambda t: t.update({A: torch.tensor(1.0)})),
        f"'{A}' in .*{WEIGHTS} is a single number",
    ),
    "whole numbers": (
        lambda f: rewrite(f, lambda t: t.update({A: torch.ones(4, 32, dtype=torch.int64)})),
        f"'{A}' in .* is of type int64",
    ),
    "NaN": (lambda f: rewrite(f, lambda t: t[A][0, 0].fill_(torch.nan)), f"'{A}' in .* has NaN or infinity in 1 of"),
    "infinity in the head": (
        lambda f: rewrite(f, lambda t: t["base_model.model.classifier.weight"].fill_(-torch.inf)),
        "'base_model.model.classifier.weight' in .* has NaN or infinity in 96 of 96",
    ),
}


@pytest.mark.parametrize("name", BREAK)
def test_it_is_refused(name: str, folder: Path) -> None:
    we_import("bert", folder)
    damage, words = BREAK[name]
    damage(folder)
    with pytest.raises(PeftlabError, match=words) as caught:
        we_import("bert", folder)
    assert "\n" not in str(caught.value)


def test_another_backbone(folder: Path) -> None:
    change_config(folder, base_model_name_or_path="owner/bert")
    with pytest.raises(PeftlabError, match=r"for another backbone \(owner/bert\) than this llama: it adapts 'bert\."):
        we_import("llama", folder)


def test_no_folder_and_a_hub_id() -> None:
    with pytest.raises(PeftlabError, match=r"peft\.path is needed"):
        ImportedAdapter().files()
    with pytest.raises(PeftlabError, match=r"peft\.path=owner/name is no folder.*hf download"):
        ImportedAdapter(path="owner/name").files()


def test_a_new_head_for_other_classes(folder: Path) -> None:
    backbone = tiny("bert", num_labels=5)
    before = backbone.model.get_parameter("classifier.weight").clone()
    attach(backbone, ImportedAdapter(path=str(folder), head="new"), seed=0)
    assert torch.equal(backbone.model.get_parameter("classifier.weight"), before)
    assert backbone.provenance["imported_adapter"]["head"] == "new"


def test_what_the_folder_says_is_not_changed(folder: Path) -> None:
    with pytest.raises(PeftlabError, match=r"peft\.changes\.rank: the adapter in .* says rank itself"):
        we_import("bert", folder, changes={"rank": 8})
    with pytest.raises(PeftlabError, match=r"unknown key 'peft\.changes\.lr_ration'.*Did you mean 'lr_ratio'"):
        we_import("bert", folder, changes={"lr_ration": 8})


def test_the_folder_and_the_changes_are_blamed_apart(folder: Path, scratch: Path) -> None:
    with pytest.raises(PeftlabError, match=r"^peft\.changes\.dropout=7 is not allowed"):
        we_import("bert", folder, changes={"dropout": 7})
    other = write(trained("bert", AdaLoRA(rank=2, initial_rank=3, targets=["query"])), scratch / "adalora")
    change_config(other, beta1=3)
    with pytest.raises(PeftlabError, match=rf"^peft\.path: .*{CONFIG}: beta1=3 is not allowed") as caught:
        we_import("bert", other, changes={"dropout": 0.1})
    assert "peft.changes" not in str(caught.value)
    change_config(other, beta1=0.85, orth_reg_weight=-1)
    with pytest.raises(PeftlabError, match=rf"^peft\.path: .*{CONFIG}: orth_reg_weight=-1 is not allowed"):
        we_import("bert", other)


def test_random_matrices_that_are_not_there(scratch: Path) -> None:
    with pytest.warns(UserWarning, match="PRNG"):
        config = peft.VeraConfig(r=6, target_modules=["query"], save_projection=False)
    peft_saves("bert", config, scratch / "adapter")
    with pytest.raises(PeftlabError, match="save_projection=false"):
        we_import("bert", scratch / "adapter")


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
def test_an_embedding_that_was_changed(scratch: Path) -> None:
    """peft saves an adapted embedding with it; the backbone's must be the same."""
    peft_saves("llama", peft.LoraConfig(r=4, target_modules=["embed_tokens"]), scratch / "adapter")
    we_import("llama", scratch / "adapter")
    key = "base_model.model.model.embed_tokens.base_layer.weight"
    rewrite(scratch / "adapter", lambda t: t[key].add_(1))
    with pytest.raises(PeftlabError, match="brings an embedding of its own"):
        we_import("llama", scratch / "adapter")


def test_a_prompt_of_another_length_or_model(scratch: Path) -> None:
    folder = write(trained("bert", PromptTuning(length=N, position="before")), scratch / "adapter")
    change_config(folder, num_virtual_tokens=7)
    with pytest.raises(PeftlabError, match=f"num_virtual_tokens=7 and holds {N} vectors"):
        we_import("bert", folder)
    change_config(folder, num_virtual_tokens=N, num_transformer_submodules=2)
    with pytest.raises(PeftlabError, match="num_transformer_submodules=2"):
        we_import("bert", folder)


def test_a_run_is_refused_before_anything_heavy_loads(peftlab: Peftlab, reviews: Path, folder: Path) -> None:
    run = ("train", *TINY, f"data.path={reviews}", "peft=import")
    for given, words in (
        ((), "peft.path is needed"),
        (("peft.path=nowhere",), "peft.path=nowhere is no folder"),
        ((f"peft.path={folder}", "peft.head=old"), "peft.head='old' is not allowed"),
    ):
        result = peftlab(*run, *given)
        assert result.status == 2
        assert words in result.err
    change_config(folder, alpha_pattern=[1])
    result = peftlab(*run, f"peft.path={folder}")
    assert (result.status, result.err.count("\n")) == (2, 1)
    assert "alpha_pattern=[1]" in result.err
    (folder / CONFIG).write_text(json.dumps({"peft_type": "OFT"}))
    result = peftlab(*run, f"peft.path={folder}")
    assert result.status == 2
    assert "type OFT" in result.err
    assert not list(Path("outputs").rglob("*.*")), "nothing is left in a run's folder"
