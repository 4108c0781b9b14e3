"""Models whose config is nested (text beside images), and heads that are rotary in part: the same in HF peft."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import pytest

from peftlab.backbones.padding import require_padding_changes_nothing
from peftlab.backbones.transformer_backbone import TransformerBackbone
from peftlab.errors import BackboneError, PeftlabError
from peftlab.peft.base import attach
from peftlab.peft.lora import LoRA
from peftlab.peft.p_tuning_v2 import PTuningV2
from peftlab.peft.prompt_tuning import PromptTuning
from tests.backbones.tiny_backbones import ARCHITECTURES, batch, shake, tiny_config
from tests.interop.exchange import TOLERANCE, N, logits_of, peft_logits, randomise, write

SIZES = ARCHITECTURES["llama"]
IMAGES = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 28,
    "patch_size": 14,
}
NESTED: dict[str, dict[str, Any]] = {
    "gemma3": {"text_config": SIZES | {"head_dim": 8, "sliding_window": 32}, "vision_config": IMAGES},
    "modernvbert": {"text_config": ARCHITECTURES["bert"], "vision_config": IMAGES},
}
PARTLY_ROTARY = {
    "phi": ARCHITECTURES["bert"],
    "stablelm": SIZES,
    "persimmon": ARCHITECTURES["bert"],
    "gpt_neox": ARCHITECTURES["gpt_neox"],
}


def built(model_type: str, settings: dict[str, Any], **more: Any) -> TransformerBackbone:
    config = tiny_config("bert", architecture={"model_type": model_type, **settings}, **more)
    backbone = config.build(3, seed=0).eval()
    shake(backbone)
    return backbone


@pytest.mark.parametrize("kind", PARTLY_ROTARY)
def test_a_prefix_turns_as_much_of_a_head_as_the_model_does(kind: str, scratch: Path) -> None:
    backbone = built(kind, PARTLY_ROTARY[kind])
    plain = copy.deepcopy(backbone.model)
    prefix = attach(backbone, PTuningV2(length=N), seed=1)
    randomise(backbone)
    write(prefix, scratch / "adapter")
    plain.config.use_cache = True  # type: ignore[union-attr]
    theirs = peft.PeftModel.from_pretrained(plain, scratch / "adapter").eval()
    ids, mask = batch(backbone, ["a fine film"])
    found = logits_of(backbone.eval(), ids, mask) - peft_logits(theirs, ids, mask, {})
    assert found.abs().max() < TOLERANCE


@pytest.mark.parametrize("kind", NESTED)
def test_a_nested_config_is_read_where_its_text_is(kind: str) -> None:
    backbone = built(kind, NESTED[kind], dropout=0.25, attention_dropout=0.125)
    require_padding_changes_nothing(backbone)
    text: Any = backbone.model.config.get_text_config()  # type: ignore[union-attr, operator]
    assert text.attention_dropout == 0.125
    assert text.pad_token_id == backbone.tokenizer.pad_id
    backbone.check_length(64)
    with pytest.raises(BackboneError, match="at most 64"):
        backbone.check_length(65)


@pytest.mark.parametrize("kind", NESTED)
def test_a_prefix_stands_in_the_attention_over_text_alone(kind: str) -> None:
    backbone = built(kind, NESTED[kind])
    prefix: Any = attach(backbone, PTuningV2(length=N), seed=0)
    assert len(prefix.prefix.shapes) == NESTED[kind]["text_config"]["num_hidden_layers"]
    backbone(*batch(backbone, ["a fine film"])).sum().backward()
    gradient = prefix.prefix.embedding.grad.view(N, len(prefix.prefix.shapes), -1)
    assert (gradient.abs().amax(dim=(0, 2)) > 0).all()


def test_a_soft_prompt_of_a_nested_config_goes_to_hf_peft(scratch: Path) -> None:
    backbone = built("gemma3", NESTED["gemma3"])
    plain = copy.deepcopy(backbone.model)
    prompt = attach(backbone, PromptTuning(length=N), seed=0)
    write(prompt, scratch / "adapter")
    theirs = peft.PeftModel.from_pretrained(plain, scratch / "adapter").eval()
    ids, mask = batch(backbone, ["a fine film"])
    found = logits_of(backbone.eval(), ids, mask) - peft_logits(theirs, ids, mask, {})
    assert found.abs().max() < TOLERANCE


def test_lora_of_a_nested_config_goes_to_hf_peft(scratch: Path) -> None:
    backbone = built("gemma3", NESTED["gemma3"])
    plain = copy.deepcopy(backbone.model)
    adapter = attach(backbone, LoRA(rank=2, targets=[r".*language_model.*q_proj"]), seed=0)
    randomise(backbone)
    write(adapter, scratch / "adapter")
    theirs = peft.PeftModel.from_pretrained(plain, scratch / "adapter").eval()
    ids, mask = batch(backbone, ["a fine film", "dull"])
    found = logits_of(backbone.eval(), ids, mask) - peft_logits(theirs, ids, mask, {})
    assert found.abs().max() < TOLERANCE


PERCEIVER = {"d_model": 32, "d_latents": 32, "num_latents": 8, "num_self_attends_per_block": 1, "qk_channels": 32}
CANINE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
MISFIT = {**SIZES, "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 6}


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        ("perceiver", PERCEIVER, "keeps its classifier inside its trunk"),
        ("canine", CANINE, "has no table of words"),
        ("mistral4", MISFIT, "cannot read a text"),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_line(kind: str, settings: dict[str, Any], said: str) -> None:
    config = tiny_config("bert", architecture={"model_type": kind, **settings}, attention="eager")

    def use() -> None:
        backbone = config.build(2, seed=0)
        require_padding_changes_nothing(backbone)
        attach(backbone, PromptTuning(), seed=0)

    with pytest.raises(PeftlabError, match=said) as refused:
        use()
    assert "\n" not in str(refused.value)


def test_nested_settings_are_those_of_transformers() -> None:
    wrong = NESTED["gemma3"] | {"text_config": {"hiden_size": 32}}
    with pytest.raises(BackboneError, match=r"backbone\.architecture\.text_config\.hiden_size.*'hidden_size'"):
        tiny_config("bert", architecture={"model_type": "gemma3", **wrong}).build(2, seed=0)
    backbone = built("gemma3", NESTED["gemma3"])
    given = NESTED["gemma3"]["text_config"]
    text: Any = backbone.model.config.get_text_config()  # type: ignore[union-attr, operator]
    assert {name: getattr(text, name) for name in given} == given
