"""Decoders with their own head: what they say, what of them trains, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from peftlab.backbones.language_model import LanguageModelBackbone
from peftlab.backbones.padding import require_padding_changes_nothing
from peftlab.backbones.text_classifier import TextClassifierConfig
from peftlab.errors import BackboneError
from peftlab.peft.base import attach, methods
from peftlab.peft.full import FullFineTuning
from peftlab.peft.lora import LoRA
from peftlab.peft.prefix_tuning import PrefixTuning
from peftlab.peft.prompt_tuning import PromptTuning
from tests.backbones.tiny_backbones import batch, shake, tiny_config

DECODERS = ("gemma", "gpt2", "gpt_neox", "llama", "mistral", "phi3", "qwen2", "qwen3")
TEXTS = ["short", "a text that is quite a bit longer than that"]


def language_model(model_type: str, **more: Any) -> LanguageModelBackbone:
    backbone = tiny_config(model_type, **more).build(0, seed=0, head="own").eval()
    assert isinstance(backbone, LanguageModelBackbone)
    return backbone


@pytest.mark.parametrize("model_type", DECODERS)
@torch.no_grad()
def test_logits_are_those_of_transformers_model(model_type: str) -> None:
    backbone = language_model(model_type)
    shake(backbone)
    plain = AutoModelForCausalLM.from_config(backbone.model.config, attn_implementation="sdpa").eval()
    plain.load_state_dict(backbone.model.state_dict())
    require_padding_changes_nothing(backbone)
    ids, mask = batch(backbone, TEXTS)
    logits = backbone(ids, mask)
    assert logits.shape == (2, ids.shape[1], 300)
    for row, text in enumerate(TEXTS):
        alone = plain(batch(backbone, [text])[0]).logits[0]
        torch.testing.assert_close(logits[row, : len(alone)], alone, atol=1e-5, rtol=0)
    at = torch.rand(mask.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    torch.testing.assert_close(backbone(ids, mask, at=at), logits[at], atol=1e-6, rtol=0)
    assert backbone(ids, mask, at=torch.zeros_like(at)).shape == (0, 300)
    assert not backbone.head_modules(), "it is as frozen as the rest"


def test_no_logits_are_made_of_other_places() -> None:
    backbone = language_model("gpt2")
    seen: list[tuple[int, ...]] = []
    backbone.model.get_output_embeddings().register_forward_hook(lambda _m, _i, out: seen.append(tuple(out.shape)))
    ids, mask = batch(backbone, TEXTS)
    at = torch.zeros_like(mask, dtype=torch.bool)
    at[0, 1] = at[1, 7] = True
    backbone(ids, mask, at=at).sum().backward()
    assert seen == [(1, 2, 300)]


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
@pytest.mark.parametrize("method", [PromptTuning(length=3, position="after_first"), PromptTuning(length=3),
                                    PrefixTuning(length=3, hidden=8)])  # fmt: skip
@torch.no_grad()
def test_prompts_and_prefixes_leave_a_logit_for_each_token(model_type: str, method: Any) -> None:
    backbone = language_model(model_type)
    shake(backbone)
    ids, mask = batch(backbone, TEXTS)
    before = backbone(ids, mask)
    adapter = attach(backbone, method, seed=0, train_head=False)
    backbone.eval()
    logits = backbone(ids, mask)
    assert logits.shape == before.shape
    assert (logits - before).abs().max() > 1e-3
    for row in range(2):  # the last place knows all before it, the prompt too, and is not moved by padding
        one, own = batch(backbone, [TEXTS[row]])
        torch.testing.assert_close(backbone(one, own)[0], logits[row, : one.shape[1]], atol=1e-5, rtol=0)
    at = torch.zeros_like(mask, dtype=torch.bool)
    at[:, 2:5] = True
    torch.testing.assert_close(backbone(ids, mask, at=at), logits[at], atol=1e-6, rtol=0)
    with adapter.disabled():
        torch.testing.assert_close(backbone(ids, mask), before, atol=1e-6, rtol=0)
    if isinstance(method, PromptTuning):  # what follows the first token is said behind the prompt, wherever it stands
        whole, seen, _ = backbone._prompt.insert(ids, mask)  # type: ignore[union-attr]
        raw = backbone.model(input_ids=whole, attention_mask=seen).logits
        torch.testing.assert_close(logits, raw[:, 3:], atol=1e-6, rtol=0)


MORE: dict[str, dict[str, Any]] = {
    "compose": {"methods": [{"name": "lora", "rank": 2}, {"name": "layernorm"}]},
}


@pytest.mark.parametrize("name", sorted({name for name, _ in methods()} - {"head", "import", "multitask_prompt"}))
def test_every_method_finds_its_places(name: str) -> None:
    """Trains what it says and nothing of the head; what it refuses for a classifier of the type, it refuses here."""
    backbone = language_model("qwen2" if name == "bitfit" else "llama")  # a Llama has no biases
    method = dict(methods())[name](**MORE.get(name, {}))
    adapter = attach(backbone, method, seed=0, train_head=False)
    ids, mask = batch(backbone, TEXTS)
    backbone(ids, mask, at=mask.cumsum(1) > 1).square().mean().backward()  # LoReFT edits prompts of two tokens on
    trained = [p for p in backbone.parameters() if p.requires_grad]
    assert trained
    assert set(map(id, trained)) == set(map(id, adapter.parameters(beside=True)))
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in trained)
    assert backbone.model.lm_head.weight.requires_grad is (name == "full")


def tied(**more: Any) -> LanguageModelBackbone:
    config = tiny_config("llama", **more)
    assert config.architecture is not None
    config.architecture["tie_word_embeddings"] = True
    backbone = config.build(0, seed=0, head="own").eval()
    assert isinstance(backbone, LanguageModelBackbone)
    return backbone


def test_a_head_trains_beside_an_adapter_if_it_is_asked_to() -> None:
    backbone = language_model("llama", train_head=True)
    adapter = attach(backbone, LoRA(rank=2), seed=0, train_head=True)
    assert backbone.head_modules() == ["lm_head"]
    assert backbone.model.lm_head.weight.requires_grad
    assert "lm_head.weight" in {name.removeprefix("model.") for name in adapter.state_dict()}


def test_a_tied_head_is_the_embedding_and_is_not_trained_alone() -> None:
    with pytest.raises(BackboneError, match=r"tied.*peft=full trains both"):
        tied(train_head=True)
    backbone = tied()
    attach(backbone, FullFineTuning(), seed=0, train_head=False)
    assert backbone.model.model.embed_tokens.weight.requires_grad
    assert backbone.model.lm_head.weight is backbone.model.model.embed_tokens.weight


def test_lora_on_a_tied_head_leaves_the_embedding_and_is_not_merged() -> None:
    backbone = tied()
    ids, mask = batch(backbone, TEXTS)
    before = backbone(ids, mask)
    adapter = attach(backbone, LoRA(rank=2, targets=["lm_head"], alpha=2.0), seed=0, train_head=False)
    a, b = (p for p in adapter.parameters())
    torch.nn.init.normal_(b, std=0.5, generator=torch.Generator().manual_seed(0))
    hidden = backbone.model.model(ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(backbone(ids, mask), before + hidden @ (b @ a).T, atol=1e-5, rtol=0)
    with pytest.raises(Exception, match="shares its weight"):
        adapter.merge()


@pytest.mark.parametrize(
    ("model_type", "said"),
    [("bert", "is an encoder"), ("deberta-v2", "is an encoder"), ("t5", "writes one text from another")],
)
def test_an_encoder_says_no_next_token(model_type: str, said: str) -> None:
    with pytest.raises(BackboneError, match=said) as caught:
        tiny_config(model_type).build(0, seed=0, head="own")
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(BackboneError, match="bag of words"):
        TextClassifierConfig().build(0, seed=0, head="own")


def test_a_model_that_looks_ahead_is_refused() -> None:
    backbone = language_model("xlnet")
    shake(backbone)
    with pytest.raises(BackboneError, match="sees what comes behind a token"):
        require_padding_changes_nothing(backbone)


def test_pooling_is_refused_and_narrow_types_stay_narrow() -> None:
    with pytest.raises(BackboneError, match="nothing to pool"):
        language_model("llama", pooling="mean")
    backbone = language_model("llama", dtype="bfloat16")
    assert {p.dtype for p in backbone.parameters()} == {torch.bfloat16}
    ids, mask = batch(backbone, TEXTS)
    assert backbone(ids, mask).dtype == torch.float32
