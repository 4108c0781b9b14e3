"""Adapters go to HF peft and come from it through files, and compute the same logits there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors.torch
import torch

from peftlab.errors import PeftlabError
from peftlab.peft.adalora import AdaLoRA
from peftlab.peft.base import PEFTStrategy, attach, methods
from peftlab.peft.compose import Compose
from peftlab.peft.dora import DoRA, DoRADelta
from peftlab.peft.dynamic_dora import DynamicDoRA
from peftlab.peft.hf import codec
from peftlab.peft.ia3 import IA3
from peftlab.peft.layernorm import LayerNormTuning
from peftlab.peft.lora import LoRA
from peftlab.peft.p_tuning_v2 import PTuningV2
from peftlab.peft.prefix_tuning import PrefixTuning
from peftlab.peft.prompt_tuning import PromptTuning
from peftlab.peft.vera import VeRA
from tests.interop.exchange import (
    KINDS,
    METHODS,
    TOLERANCE,
    VARIANTS,
    N,
    base_model,
    change_config,
    logits_of,
    ours_to_ours,
    ours_to_peft,
    peft_loads,
    peft_logits,
    peft_saves,
    peft_to_ours,
    tensors_of,
    texts,
    trained,
    we_import,
    write,
)

BOTH = {**METHODS, **VARIANTS}


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BOTH)
def test_peft_loads_what_we_export(name: str, kind: str, scratch: Path) -> None:
    assert ours_to_peft(name, BOTH[name], kind, scratch / "adapter") < TOLERANCE


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [name for name, case in BOTH.items() if case.theirs])
def test_we_import_what_peft_saves(name: str, kind: str, scratch: Path) -> None:
    assert peft_to_ours(name, BOTH[name], kind, scratch / "adapter") < TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BOTH)
def test_we_import_what_we_export(name: str, kind: str, scratch: Path) -> None:
    assert ours_to_ours(name, BOTH[name], kind, scratch / "adapter") < TOLERANCE


OTHERS: dict[str, tuple[str, PEFTStrategy]] = {
    "slices of a fused projection": ("gpt2", LoRA(rank=4)),
    "slices of other ranks and scales": ("gpt2", LoRA(rank=4, rank_pattern={"value": 2}, alpha_pattern={"value": 5.0})),
    "rsLoRA in slices": ("gpt2", LoRA(rank=4, rank_stabilized=True)),
    "PiSSA in slices": ("gpt2", LoRA(rank=4, init="pissa")),
    "MiLoRA in slices": ("gpt2", LoRA(rank=4, init="milora")),
    "OLoRA": ("llama", LoRA(rank=4, init="olora")),
    "DoRA in slices": ("gpt2", DoRA(rank=4)),
    "IA3 in slices": ("gpt2", IA3()),
    "Conv1D": ("gpt2", LoRA(rank=4, targets=["attn.c_attn", "ffn_up"])),
    "DoRA of a Conv1D": ("gpt2", DoRA(rank=4, targets=["ffn_up"])),
    "VeRA of a Conv1D": ("gpt2", VeRA(rank=6, targets=["ffn_up", "ffn_down"])),
    "LayerNorm of GPT-2": ("gpt2", LayerNormTuning()),
    "prefix of GPT-2": ("gpt2", PTuningV2(length=N, position_shift=True)),
    "prefix of ELECTRA": ("electra", PTuningV2(length=N, position_shift=True)),
    "prefix of Qwen3": ("qwen3", PTuningV2(length=N)),
    "prefix of GPT-NeoX, partly rotary": ("gpt_neox", PTuningV2(length=N)),
    "prefix of Llama, shifted": ("llama", PTuningV2(length=N, position_shift=True)),
    "dynamic DoRA": ("bert", DynamicDoRA(rank=2, initial_rank=4)),
    "all biases": ("bert", LoRA(rank=4, bias="all")),
    "biases of the adapted layers": ("bert", LoRA(rank=4, bias="lora_only")),
    "output.dense of two kinds": ("bert", LoRA(rank=4, targets=["ffn_down"])),
    "one layer": ("bert", LoRA(rank=4, targets=[r".*layer\.1\.attention\.self\.query"])),
    "a head of two modules": ("distilbert", LoRA(rank=4)),
    "a head with a dense layer": ("roberta", LoRA(rank=4)),
    "a head with a pooler": ("deberta-v2", LoRA(rank=4)),
    "ModernBERT": ("modernbert", LoRA(rank=4, targets=["attention_output", "ffn_down"])),
}


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
@pytest.mark.parametrize("name", OTHERS)
def test_peft_computes_the_same(name: str, scratch: Path) -> None:
    kind, strategy = OTHERS[name]
    adapter = trained(kind, strategy)
    ids, mask = texts(kind, "")
    mine = logits_of(adapter.backbone, ids, mask)
    write(adapter, scratch / "adapter")
    theirs = peft_logits(peft_loads(kind, scratch / "adapter"), ids, mask, {})
    torch.testing.assert_close(mine, theirs, atol=TOLERANCE, rtol=0)
    assert (mine - logits_of(base_model(kind), ids, mask)).abs().max() > 1e-2, "the adapter must matter"
    again, _ = we_import(kind, scratch / "adapter")
    torch.testing.assert_close(logits_of(again.backbone, ids, mask), mine, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", ["LoRA", "IA3", "VeRA", "LNTuning", "prompt"])
def test_an_adapter_of_the_trunk_comes_back_with_its_head(name: str, scratch: Path) -> None:
    adapter = trained("bert", METHODS[name].ours("bert"))
    folder = write(adapter, scratch / "adapter", trunk_only=True)
    assert not any(key.startswith("base_model.model.bert.") for key in tensors_of(folder))
    again, imported = we_import("bert", folder)
    assert again.backbone.provenance["imported_adapter"]["head"] == "taken over"
    assert len(imported.files()) == 3
    ids, mask = texts("bert", name)
    found, expected = logits_of(again.backbone, ids, mask), logits_of(adapter.backbone, ids, mask)
    torch.testing.assert_close(found, expected, atol=0, rtol=0)


def test_an_adapter_of_a_language_model_starts_a_classifier(scratch: Path) -> None:
    """The trunk's modules have the same names; the head is new."""
    config = peft.LoraConfig(r=4, target_modules=["q_proj"])
    model = peft_saves("llama", config, scratch / "adapter")
    tensors = {key: t for key, t in tensors_of(scratch / "adapter").items() if "score" not in key}
    safetensors.torch.save_file(tensors, scratch / "adapter" / "adapter_model.safetensors")
    change_config(scratch / "adapter", task_type="CAUSAL_LM")
    adapter, _ = we_import("llama", scratch / "adapter")
    backbone: Any = adapter.backbone
    assert backbone.provenance["imported_adapter"]["head"] == "new"
    ids, mask = texts("llama", "")
    with torch.no_grad():
        theirs = model.base_model.model.model(input_ids=ids, attention_mask=mask).last_hidden_state
        ours = backbone.model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0)


def test_a_composition_starts_from_a_folder_too(scratch: Path) -> None:
    folder = write(trained("bert", LoRA(rank=4)), scratch / "adapter")
    both = Compose(methods=[{"name": "import", "path": str(folder)}, {"name": "prompt_tuning", "length": N}])
    assert [file.name for file in both.files()] == ["adapter_config.json", "adapter_model.safetensors"]


def test_pruned_adalora_of_peft(scratch: Path) -> None:
    """After pruning peft keeps fewer triplets, another number in each layer, and scales by the initial rank."""
    config = peft.AdaLoraConfig(init_r=4, target_r=2, total_step=100, target_modules=["query", "value"], tfinal=10)
    config.task_type = "SEQ_CLS"
    model = peft_saves("bert", config, scratch / "whole")
    kept = [[True, False, True, True], [True, False, False, False], [True] * 4, [False, True, True, False]]
    names = sorted(name for name, _ in model.base_model.model.named_parameters() if ".lora_E." in name)
    model.peft_config["default"].rank_pattern = dict(zip(names, kept, strict=True))
    for name, flags in zip(names, kept, strict=True):
        model.base_model.model.get_parameter(name).data[~torch.tensor(flags)] = 0.0
    model.save_pretrained(scratch / "adapter")
    assert len({tuple(t.shape) for name, t in tensors_of(scratch / "adapter").items() if "lora_E" in name}) > 1
    ids, mask = texts("bert", "")
    adapter, _ = we_import("bert", scratch / "adapter")
    mine = logits_of(adapter.backbone, ids, mask)
    torch.testing.assert_close(mine, peft_logits(model, ids, mask, {}), atol=TOLERANCE, rtol=0)


NAMINGS: dict[str, dict[str, Any]] = {
    "a regex": {"target_modules": r".*layer\.1\..*\.(query|value)"},
    "all-linear": {"target_modules": "all-linear"},
    "all-linear but": {"target_modules": "all-linear", "exclude_modules": ["query", "pooler.dense"]},
    "some layers": {"target_modules": ["query", "output.dense"], "layers_to_transform": [1]},
    "one layer by its pattern": {"target_modules": ["value"], "layers_to_transform": 0, "layers_pattern": "layer"},
    "all biases": {"target_modules": ["query"], "bias": "all"},
    "biases of the adapted layers": {"target_modules": ["query"], "bias": "lora_only"},
    "a gaussian start": {"target_modules": ["query"], "init_lora_weights": "gaussian"},
    "dropout": {"target_modules": ["query"], "lora_dropout": 0.3},
    "patterns": {
        "target_modules": ["query", "key", "value"],
        "rank_pattern": {"query": 2, r"layer\.1\..*value": 3},
        "alpha_pattern": {"layer.0.attention.self.key": 1, "value": 4.5},
    },
}


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
@pytest.mark.parametrize("name", NAMINGS)
def test_every_way_to_name_modules_is_understood(name: str, scratch: Path) -> None:
    model = peft_saves("bert", peft.LoraConfig(r=4, **NAMINGS[name]), scratch / "adapter")
    ids, mask = texts("bert", "")
    adapter, strategy = we_import("bert", scratch / "adapter")
    theirs = peft_logits(model, ids, mask, {})
    torch.testing.assert_close(logits_of(adapter.backbone, ids, mask), theirs, atol=TOLERANCE, rtol=0)
    ours = sum(p.numel() for p in adapter.backbone.parameters() if p.requires_grad)
    head = sum(p.numel() for _, p in adapter.backbone.head_parameters())
    lora = sum(p.numel() for n, p in model.named_parameters() if p.requires_grad and "classifier" not in n)
    assert ours - head == lora, "the same parameters train on"
    assert strategy.closed_form(base_model("bert")) == lora


def test_the_files_are_what_peft_writes(scratch: Path) -> None:
    """The same names and shapes of tensors as peft's own files, for every method."""
    for name, case in METHODS.items():
        for kind in KINDS:
            write(trained(kind, case.ours(kind)), scratch / f"{name}-{kind}")
            model = peft_loads(kind, scratch / f"{name}-{kind}")
            model.save_pretrained(scratch / f"{name}-{kind}-again")
            ours, theirs = tensors_of(scratch / f"{name}-{kind}"), tensors_of(scratch / f"{name}-{kind}-again")
            assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in theirs.items()}, (name, kind)
            assert all(t.dtype == torch.float32 for t in ours.values())
            for key, tensor in ours.items():
                torch.testing.assert_close(tensor, theirs[key], atol=0, rtol=0, msg=f"{name} {kind} {key}")


def test_names_are_short_where_they_mean_the_same(scratch: Path) -> None:
    def targets(strategy: LoRA) -> list[str]:
        found: list[str] = codec.written(trained("bert", strategy)).config["target_modules"]
        return found

    assert targets(LoRA(rank=4)) == ["attention.self.query", "attention.self.value"]
    assert targets(LoRA(rank=4, targets=["ffn_down"])) == [
        f"bert.encoder.layer.{layer}.output.dense" for layer in range(2)
    ], "output.dense alone also means attention.output.dense"


def test_the_adapter_trains_on(scratch: Path) -> None:
    """An imported adapter has the gradients that peft's has."""
    config = peft.LoraConfig(r=4, target_modules=["query"], use_dora=True)
    model = peft_saves("bert", config, scratch / "adapter")
    adapter, _ = we_import("bert", scratch / "adapter")
    backbone: Any = adapter.backbone
    ids, mask = texts("bert", "")
    labels = torch.tensor([0, 1, 2, 1])
    torch.nn.functional.cross_entropy(model(input_ids=ids, attention_mask=mask).logits, labels).backward()
    torch.nn.functional.cross_entropy(backbone(ids, mask), labels).backward()
    theirs = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert len(adapter.placed()) == 2
    for placed in adapter.placed():
        delta, place = placed.delta, f"base_model.model.{placed.name}"
        assert isinstance(delta, DoRADelta)
        for mine, key in (
            (delta.lora_A, "lora_A"),
            (delta.lora_B, "lora_B"),
            (delta.magnitude, "lora_magnitude_vector"),
        ):
            other = theirs[f"{place}.{key}.default.weight"]
            assert mine.grad is not None
            assert mine.grad.abs().max() > 0
            torch.testing.assert_close(mine.grad, other, atol=1e-5, rtol=0)
    head = theirs["base_model.model.classifier.modules_to_save.default.weight"]
    torch.testing.assert_close(backbone.model.get_parameter("classifier.weight").grad, head, atol=1e-5, rtol=0)


@pytest.mark.parametrize("bits", ["nf4", "bf16"])
@pytest.mark.parametrize(
    "strategy",
    [LoRA(rank=4), DoRA(rank=4), LayerNormTuning(), IA3(), VeRA(rank=6), PromptTuning(length=N, position="before")],
    ids=lambda strategy: strategy.name,
)
def test_a_backbone_of_fewer_bits(bits: str, strategy: PEFTStrategy, scratch: Path) -> None:
    adapter = trained("bert", strategy, bits=bits)
    folder = write(adapter, scratch / "adapter")
    assert all(t.dtype == torch.float32 for t in tensors_of(folder).values())
    again, _ = we_import("bert", folder, bits=bits)
    ids, mask = texts("bert", "")
    found, expected = logits_of(again.backbone, ids, mask), logits_of(adapter.backbone, ids, mask)
    torch.testing.assert_close(found, expected, atol=0, rtol=0)


@pytest.mark.parametrize("name", ["LoRA", "AdaLoRA", "VeRA", "prefix", "multitask"])
def test_an_imported_adapter_is_saved_and_loaded_as_any_other(name: str, scratch: Path) -> None:
    write(trained("bert", METHODS[name].ours("bert")), scratch / "adapter")
    first, _ = we_import("bert", scratch / "adapter", seed=1)
    with torch.no_grad():
        for parameter in first.backbone.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    second, _ = we_import("bert", scratch / "adapter", seed=2)
    ids, mask = texts("bert", name)
    expected = logits_of(first.backbone, ids, mask)
    assert not torch.equal(logits_of(second.backbone, ids, mask), expected)
    second.load_state_dict(first.state_dict())
    torch.testing.assert_close(logits_of(second.backbone, ids, mask), expected, atol=0, rtol=0)


CANNOT: dict[str, tuple[str, PEFTStrategy, str]] = {
    "absolute positions": ("bert", PrefixTuning(length=N), "peft.position_shift=true"),
    "no cache": ("distilbert", PTuningV2(length=N), "takes none"),
    "behind the first token": ("bert", PromptTuning(length=N), "peft.position=before"),
    "VeRA in slices": ("gpt2", VeRA(rank=6), "in slices"),
    "AdaLoRA in slices": ("gpt2", AdaLoRA(targets=["query", "value"]), "adapted in slices"),
    "AdaLoRA of an embedding": ("bert", AdaLoRA(targets=["embedding"]), "an embedding"),
    "IA3 twice": ("bert", IA3(targets=["ffn_down"], feedforward_targets=["ffn_down"]), "one of the two"),
}


@pytest.mark.parametrize("name", CANNOT)
def test_what_the_format_cannot_say_is_refused(name: str) -> None:
    kind, strategy, words = CANNOT[name]
    with pytest.raises(PeftlabError, match=words):
        codec.written(trained(kind, strategy))


def test_methods_that_peft_does_not_know_say_so() -> None:
    unknown = {
        name: cls for name, cls in methods() if cls.supports.hf_peft is None and name not in ("import", "compose")
    }
    assert {"bitfit", "houlsby", "pfeiffer", "full", "head"} <= set(unknown)
    for name, cls in unknown.items():
        adapter = attach(base_model("bert"), cls(), seed=0)
        with pytest.raises(PeftlabError, match=f"peft={name} cannot be written in the format of HF peft") as caught:
            codec.written(adapter)
        supports = cls().supports
        assert ("--merged" in str(caught.value)) == (supports.mergeable or supports.adds_nothing), name


def test_every_method_that_declares_a_type_writes_it() -> None:
    written = {name for one in codec.codecs() for name in one.methods}
    own = {name: cls for name, cls in methods() if cls.__module__.startswith("peftlab.")}  # not those of other tests
    declaring = {name for name, cls in own.items() if cls.supports.hf_peft is not None and name != "import"}
    assert written == declaring
    for name in written:
        assert name in codec.codec_of(name).methods


def test_a_position_shift_moves_the_text() -> None:
    """The prefix of zero keys and values, too short to matter much: only positions differ from the plain model's."""
    plain, shifted = PTuningV2(length=N), PTuningV2(length=N, position_shift=True)
    assert (plain.extra_tokens(), shifted.extra_tokens()) == (0, N)
    ids, mask = texts("bert", "")
    first, second = trained("bert", plain), trained("bert", shifted)
    one, other = logits_of(first.backbone, ids, mask), logits_of(second.backbone, ids, mask)
    assert not torch.allclose(one, other, atol=1e-3)
    with second.disabled():
        off = logits_of(second.backbone, ids, mask)
    with first.disabled():
        torch.testing.assert_close(logits_of(first.backbone, ids, mask), off, atol=0, rtol=0)
    with pytest.raises(PeftlabError, match=r"peft\.position_shift=true"):
        trained("distilbert", PTuningV2(length=N, position_shift=True))


def test_changes_of_the_config_reach_the_method(scratch: Path) -> None:
    folder = write(trained("bert", LoRA(rank=4)), scratch / "adapter")
    adapter, imported = we_import("bert", folder, changes={"lr_ratio": 4.0, "dropout": 0.2})
    native = imported.native
    assert isinstance(native, LoRA)
    assert adapter.strategy is native
    assert (native.lr_ratio, native.dropout, native.rank) == (4.0, 0.2, 4)
    assert [group["lr"] for group in adapter.param_groups(1e-3)] == [1e-3, 4e-3]
    change_config(folder, lora_dropout=0.4)
    _, imported = we_import("bert", folder)
    assert imported.native.dropout == 0.4  # type: ignore[attr-defined]
