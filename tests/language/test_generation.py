"""Greedy generation in batches against one call a token, with adapters of every way into a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from transformers import LlamaForSequenceClassification

from peftlab import LoRA, PeftlabError, PrefixTuning, PromptTuning, attach
from peftlab.language.generation import generate
from tests.language.tiny import KINDS, language_model, slowly_generated
from tests.library.models import shake

PROMPTS = [[5, 17, 9, 22, 31, 4, 19, 40, 8, 33, 12], [7, 2, 12], [2, 2, 28, 11], [44], [6, 25, 25, 6, 18, 39, 2]]
END = 2
"""The end id, which pads, too, and stands in three prompts as text."""
ADAPTERS: dict[str, Callable[[], Any]] = {
    "lora": lambda: LoRA(rank=4),
    "prompt": lambda: PromptTuning(length=5, init="random"),
    "prefix": lambda: PrefixTuning(length=5),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_writes_what_each_prompt_writes_alone(kind: str) -> None:
    model = language_model(kind)
    expected = [slowly_generated(model, prompt, 8, END) for prompt in PROMPTS]
    for batch_size, use_cache in ((5, True), (2, True), (1, True), (5, False)):
        how = {"max_new_tokens": 8, "stop_ids": [END], "pad_id": END}
        assert generate(model, PROMPTS, batch_size=batch_size, use_cache=use_cache, **how) == expected


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_adapters_write_alike_in_batches_and_alone(kind: str, name: str) -> None:
    model = language_model(kind)
    without = generate(model, PROMPTS, max_new_tokens=8, stop_ids=[END], pad_id=0)
    shake(attach(model, ADAPTERS[name]()))
    expected = [slowly_generated(model, prompt, 8, END) for prompt in PROMPTS]
    assert generate(model, PROMPTS, max_new_tokens=8, stop_ids=[END], pad_id=0, batch_size=5) == expected
    assert expected != without


def test_any_of_several_ids_stops() -> None:
    model = language_model("llama")
    free = slowly_generated(model, PROMPTS[0], 8, None)
    assert len(set(free)) > 2
    stops = [free[3], free[5]]
    first = min(free.index(stop) for stop in stops)
    assert generate(model, PROMPTS[:1], max_new_tokens=8, stop_ids=stops, pad_id=0) == [free[: first + 1]]


def test_what_the_model_would_like_otherwise_is_put_aside() -> None:
    """Penalties, sampling and lengths of a checkpoint's generation_config are not greedy, and it keeps them."""
    model = language_model("llama")
    expected = [slowly_generated(model, prompt, 8, END) for prompt in PROMPTS]
    own = model.generation_config
    own.repetition_penalty, own.do_sample, own.temperature, own.no_repeat_ngram_size = 5.0, True, 3.0, 1
    own.suppress_tokens = [expected[0][0]]
    assert generate(model, PROMPTS, max_new_tokens=8, stop_ids=[END], pad_id=0) == expected
    assert model.generation_config is own


def test_what_has_no_next_token_is_said() -> None:
    config = language_model("llama").config
    with pytest.raises(PeftlabError, match="LlamaForSequenceClassification cannot generate text"):
        generate(LlamaForSequenceClassification(config), [[1]], max_new_tokens=1, stop_ids=[2], pad_id=0)
