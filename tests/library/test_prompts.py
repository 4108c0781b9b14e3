"""Soft prompts and prefixes in the forward of a plain model: what the backbone of a run computes, and HF peft."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch

from peftlab import LoRA, MultitaskPrompt, PeftlabError, PrefixTuning, PromptTuning, PTuning, PTuningV2, attach
from peftlab.peft.base import attach as attach_to_backbone
from tests.backbones.tiny_backbones import tiny
from tests.library.models import Net, bert, gpt2, ids, shake
from tests.peft.tiny import batch

PROMPTS: dict[str, Any] = {
    "auto": PromptTuning(length=3),
    "before": PromptTuning(length=3, position="before", init="random"),
    "p_tuning": PTuning(length=3, encoder="mlp", hidden=8),
    "multitask": MultitaskPrompt(length=3, num_tasks=2, rank=1),
    "prefix": PrefixTuning(length=3, hidden=8),
    "shifted": PTuningV2(length=3, position_shift=True),
}


@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "gpt2", "llama", "t5", "modernbert"])
def test_a_plain_model_computes_what_a_run_computes(kind: str, name: str) -> None:
    """Logits and gradients, with and without the prompt."""
    method = PROMPTS[name]
    if name == "shifted" and kind in ("distilbert", "t5", "modernbert"):
        with pytest.raises(PeftlabError, match="position_shift=true"):
            attach(tiny(kind).model, method)
        return
    backbone, plain = tiny(kind), tiny(kind)
    run = attach_to_backbone(backbone, method, seed=1)
    adapter = attach(plain.model, method, seed=1, train=plain.head_modules(), tokenizer=plain.tokenizer)
    shake(run)
    shake(adapter)
    input_ids, mask = batch()
    if kind == "t5":  # reads a text at its end
        end = mask.sum(dim=1, keepdim=True) - 1
        input_ids = input_ids.scatter(1, end, plain.model.config.eos_token_id)
    expected = backbone(input_ids, mask)
    given = {"input_ids": input_ids, "attention_mask": mask}
    logits = plain.model(**given).logits
    assert torch.equal(logits.float(), expected)
    assert torch.equal(plain.model(input_ids, attention_mask=mask).logits.float(), expected)
    expected.square().sum().backward()
    logits.square().sum().backward()
    for (mine, ours), (theirs, other) in zip(
        adapter.named_parameters(beside=True), run.named_parameters(beside=True), strict=True
    ):
        assert mine == theirs
        assert ours.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(ours.grad, other.grad, atol=0, rtol=0)
    with adapter.disabled(), run.disabled():
        assert torch.equal(plain.model(**given).logits.float(), backbone(input_ids, mask))
        assert not torch.allclose(plain.model(**given).logits.float(), expected, atol=1e-4)


def test_labels_give_the_loss_of_the_logits() -> None:
    model = bert()
    attach(model, PromptTuning(length=3, init="random"))
    labels = torch.tensor([0, 1, 1, 0])
    out = model(**ids(), labels=labels)
    torch.testing.assert_close(out.loss, torch.nn.functional.cross_entropy(out.logits, labels))


def test_a_language_model_is_that_of_hf_peft() -> None:
    """Loss with labels a token, and the logits of the text's own tokens."""
    mine, other = gpt2(), gpt2()
    adapter = attach(mine, PromptTuning(length=3, init="random"))
    theirs = peft.get_peft_model(other, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    with torch.no_grad():
        theirs.prompt_encoder["default"].embedding.weight.copy_(adapter.parameters()[0])
    given = {name: tensor[:1] for name, tensor in ids().items()}
    out, expected = mine(**given, labels=given["input_ids"]), theirs(**given, labels=given["input_ids"])
    torch.testing.assert_close(out.loss, expected.loss, atol=1e-5, rtol=0)
    torch.testing.assert_close(out.logits, expected.logits[:, 3:], atol=1e-5, rtol=0)
    assert out.logits.shape[1] == given["input_ids"].shape[1]


@pytest.mark.parametrize("kind", ["AutoModel", "AutoModelForTokenClassification", "AutoModelForMaskedLM"])
def test_what_comes_back_is_of_the_texts_own_tokens(kind: str) -> None:
    """In the places where they were: the first stays in front of a prompt behind it."""
    model = bert(kind)
    attach(model, PromptTuning(length=3, init="random"))
    said = model(**ids(), output_hidden_states=True)
    by_hand = bert(kind)
    adapter = attach(by_hand, PromptTuning(length=3, init="random"))
    prompt = [300, 301, 302]
    given = ids()
    extended = {
        name: torch.cat([t[:, :1], torch.tensor([between] * 4).view(4, 3), t[:, 1:]], dim=1)
        for (name, t), between in zip(given.items(), (prompt, [1, 1, 1]), strict=True)
    }
    with adapter.disabled():  # the embedding still answers the prompt's ids
        whole = by_hand(**extended, output_hidden_states=True)
    for one, two in zip((said[0], *said.hidden_states), (whole[0], *whole.hidden_states), strict=True):
        assert one.shape[1] == given["input_ids"].shape[1]
        torch.testing.assert_close(one, two[:, [0, *range(4, 15)]], atol=1e-6, rtol=0)
    as_tuple = model(**given, return_dict=False)
    assert torch.equal(as_tuple[0], said[0])


def test_positions_that_are_given_move_on() -> None:
    model = gpt2()
    attach(model, PromptTuning(length=3, init="random"))
    given = ids()
    positions = torch.arange(12).expand(4, -1)
    assert torch.equal(model(**given, position_ids=positions).logits, model(**given).logits)


def test_a_prompted_model_generates() -> None:
    """With a cache (test_generate.py has more) and without; a prefix too, which is a part of attention."""
    model = gpt2()
    adapter = attach(model, PromptTuning(length=3, init="random"))
    one = {name: tensor[:1] for name, tensor in ids().items()}
    found = model.generate(**one, max_new_tokens=4, min_new_tokens=4, do_sample=False, use_cache=False)
    text = one["input_ids"]
    for _ in range(4):
        best = model(input_ids=text, attention_mask=torch.ones_like(text)).logits[:, -1].argmax(-1, keepdim=True)
        text = torch.cat([text, best], dim=1)
    assert found.shape == text.shape
    cached = model.generate(**one, max_new_tokens=4, min_new_tokens=4, do_sample=False, use_cache=True)
    assert torch.equal(cached, found)
    adapter.remove()
    attach(model, PrefixTuning(length=3, hidden=8))
    outs = [
        model.generate(**one, max_new_tokens=4, min_new_tokens=4, do_sample=False, use_cache=cache)
        for cache in (True, False)
    ]
    assert torch.equal(*outs)


def test_beside_a_method_that_adapts_layers(scratch: Any) -> None:
    from peftlab import Compose

    model = bert()
    adapter = attach(model, Compose(methods=["lora", {"name": "prompt_tuning", "init": "random", "length": 3}]))
    shake(adapter)
    with adapter.disabled():
        torch.testing.assert_close(model(**ids()).logits, bert()(**ids()).logits)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(**ids()).logits, model(**ids()).logits)


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(PeftlabError) as caught:
        call()
    said = str(caught.value)
    assert "\n" not in said
    return said


def test_what_cannot_be_is_one_line() -> None:
    model = bert("AutoModelForQuestionAnswering")
    attach(model, PromptTuning(length=3, init="random"))
    given = ids()
    vectors = torch.zeros(4, 12, 32)
    long = torch.ones(1, 62, dtype=torch.int64)
    assert "none but inputs_embeds" in refused(lambda: model(inputs_embeds=vectors))
    assert "gives none. Call" in refused(lambda: model())
    mask = torch.ones(4, 1, 12, 12)
    assert "one number a token" in refused(lambda: model(input_ids=given["input_ids"], attention_mask=mask))
    assert "62 tokens and the 3 of the prompt are 65 together, more than the 64" in refused(
        lambda: model(input_ids=long)
    )
    places = torch.zeros(4, dtype=torch.int64)
    assert "start_positions= speaks of single tokens" in refused(
        lambda: model(**given, start_positions=places, end_positions=places)
    )
    assert model(**given).start_logits.shape == (4, 12)
    assert "cannot enter the forward of Net" in refused(lambda: attach(Net(), PromptTuning(init="random")))
    flash = bert()
    flash.config._attn_implementation = "flash_attention_2"
    assert "the attention of this model is 'flash_attention_2'" in refused(lambda: attach(flash, PrefixTuning()))
    attach(flash, LoRA())
