"""Generating with an adapter in a causal language model: the cache of keys and values gives what no cache gives."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from peftlab import LoRA, PeftlabError, PrefixTuning, PromptTuning, PTuning, PTuningV2, attach
from tests.library.models import shake

NEW = 10
METHODS: dict[str, Callable[[], Any]] = {
    "prompt_tuning": lambda: PromptTuning(length=5, init="random"),
    "p_tuning": lambda: PTuning(length=5),
    "prefix_tuning": lambda: PrefixTuning(length=5),
    "p_tuning_v2": lambda: PTuningV2(length=5),
    "shifted": lambda: PTuningV2(length=5, position_shift=True),
    "lora": lambda: LoRA(rank=4),
}
HF: dict[str, tuple[Callable[[], Any], Any]] = {
    "prompt_tuning": (METHODS["prompt_tuning"], peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)),
    "prefix_tuning": (METHODS["shifted"], peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)),
    "lora": (
        lambda: LoRA(rank=4, alpha=8.0, targets=["query", "value"]),
        peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]),
    ),
}
"""Ours, and HF peft's config of the same."""


def llama(**more: Any) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=None,
        initializer_range=0.3, **more,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def gpt2() -> Any:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64, pad_token_id=0, bos_token_id=1,
        eos_token_id=None, initializer_range=0.3,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def texts(padded: bool = True) -> dict[str, torch.Tensor]:
    """Three texts of seven tokens; two of them are shorter, padded on the left."""
    ids = torch.randint(2, 64, (3, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    for row, pads in ((0, 3), (1, 1)) if padded else ():
        ids[row, :pads], mask[row, :pads] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def generated(model: Any, given: dict[str, torch.Tensor], **more: Any) -> torch.Tensor:
    """The new tokens, greedily."""
    out = model.generate(**given, max_new_tokens=NEW, do_sample=False, pad_token_id=0, **more)
    return out[:, given["input_ids"].shape[1] :]


def one_by_one(model: Any, given: dict[str, torch.Tensor]) -> torch.Tensor:
    """The same without ``generate``: each text alone, without padding, read anew for each token."""
    rows = []
    for ids, mask in zip(given["input_ids"], given["attention_mask"], strict=True):
        own = ids[mask.bool()].unsqueeze(0)
        for _ in range(NEW):
            with torch.no_grad():
                logits = model(input_ids=own, attention_mask=torch.ones_like(own), use_cache=False).logits
            own = torch.cat([own, logits[:, -1].argmax(dim=-1, keepdim=True)], dim=1)
        rows.append(own[0, -NEW:])
    return torch.stack(rows)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("make", [llama, gpt2], ids=["llama", "gpt2"])
def test_a_cache_changes_nothing(make: Callable[[], Any], name: str) -> None:
    model, given = make(), texts()
    plain = generated(model, given)
    adapter = attach(model, METHODS[name]())
    shake(adapter)
    expected = one_by_one(model, given)
    assert torch.equal(generated(model, given, use_cache=True), expected)
    assert torch.equal(generated(model, given, use_cache=False), expected)
    assert not torch.equal(expected, plain)
    with adapter.disabled():
        assert torch.equal(generated(model, given), plain)
    adapter.remove()
    assert torch.equal(generated(model, given), plain)


def test_beams_and_logits_of_each_step() -> None:
    """The cache is reordered by beams; logits are those of one call on the whole text."""
    model, given = llama(), texts()
    shake(attach(model, METHODS["prompt_tuning"]()))
    beams = [generated(model, given, num_beams=3, use_cache=cache) for cache in (True, False)]
    assert torch.equal(*beams)
    out = model(**given, use_cache=True)
    more = torch.tensor([[5, 6], [7, 8], [9, 10]])
    whole = {
        "input_ids": torch.cat([given["input_ids"], more], dim=1),
        "attention_mask": torch.cat([given["attention_mask"], torch.ones_like(more)], dim=1),
    }
    further = model(more, attention_mask=whole["attention_mask"], past_key_values=out.past_key_values)
    torch.testing.assert_close(further.logits, model(**whole).logits[:, -2:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", HF)
def test_hf_peft_generates_the_same(name: str, scratch: Path) -> None:
    """Texts of one length: of padded ones HF peft's prompts count the positions otherwise."""
    mine, given, (method, config) = llama(), texts(padded=False), HF[name]
    theirs: Any = peft.get_peft_model(llama(), config).eval()
    adapter = attach(mine, method())
    shake(adapter)
    adapter.save("saved", format="hf_peft")
    peft.set_peft_model_state_dict(theirs, peft.load_peft_weights("saved", device="cpu"))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Position ids are not supported")
        expected = generated(theirs, given)
    assert torch.equal(generated(mine, given), expected)
    assert not torch.equal(generated(mine, given), generated(llama(), given))


def test_what_cannot_go_on_is_said() -> None:
    model, given = llama(), texts()
    adapter = attach(model, METHODS["prompt_tuning"]())
    with adapter.disabled():
        empty_of_it = model(**given, use_cache=True).past_key_values
    step = {"input_ids": torch.tensor([[5]] * 3), "attention_mask": torch.ones(3, 8, dtype=torch.long)}
    with pytest.raises(PeftlabError, match="holds none: fill it by a call with the prompt"):
        model(**step, past_key_values=empty_of_it)
    full = DynamicCache(config=model.config)
    model(**given, past_key_values=full)
    model(**step, past_key_values=full)
    with pytest.raises(PeftlabError, match=r"attention_mask .* \(3, 9\), not \(3, 8\)"):
        model(**step, past_key_values=full)
    with pytest.raises(PeftlabError, match="more than the 64 positions"):
        model.generate(**given, max_new_tokens=60, do_sample=False)
