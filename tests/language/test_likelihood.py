"""Log-likelihoods against one call a token; which tokens are an option's against the rule, by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from peftlab.errors import DataError
from peftlab.language.likelihood import log_likelihoods, token_log_likelihoods
from peftlab.language.options import Continuation, split
from peftlab.language.windows import fit, windows
from tests.language.tiny import KINDS, byte_tokenizer, language_model, slowly_scored


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_tokenizer([("l", "d"), ("o", "r"), ("or", "ld"), ("x", "x"), (" ", "y")])


def pieces(tokenizer: Any, question: str, option: str, **more: Any) -> tuple[list[str], list[str], bool]:
    found = split(question, option, lambda text: tokenizer(text, add_special_tokens=False)["input_ids"], **more)
    context, target = (tokenizer.convert_ids_to_tokens(ids) for ids in (found.context, found.target))
    return context, target, found.crossed


@pytest.mark.parametrize(
    ("question", "option", "context", "target", "crossed"),
    [
        ("is", " yes", ["i", "s"], ["Ġy", "e", "s"], False),
        ("is ", "yes", ["i", "s"], ["Ġy", "e", "s"], False),  # the space is the option's, as if it stood there
        ("is \n ", "no", ["i", "s"], ["Ġ", "Ċ", "Ġ", "n", "o"], False),
        ("a:", " B", ["a", ":"], ["Ġ", "B"], False),
        ("wor", "ld", ["w", "or"], ["ld"], True),  # w orld: two tokens as of the question alone, so read apart
        ("o", "rld", ["o"], ["r", "ld"], True),  # or|ld joined is one token, orld
        ("xa", "b", ["x", "a"], ["b"], False),
        ("x", "xa", ["xx"], ["a"], True),  # cut behind the joined token, as lm-evaluation-harness does
        ("", "no", ["<|end|>"], ["n", "o"], False),
        ("  ", "no", ["<|end|>"], ["Ġ", "Ġ", "n", "o"], False),
    ],
)
def test_the_tokens_of_an_option(
    tokenizer: Any, question: str, option: str, context: list[str], target: list[str], crossed: bool
) -> None:
    assert pieces(tokenizer, question, option, alone=tokenizer.eos_token_id) == (context, target, crossed)


def test_a_first_token_stands_before_every_question(tokenizer: Any) -> None:
    begin = [tokenizer.bos_token_id]
    assert pieces(tokenizer, "a", "b", begin=begin, alone=tokenizer.eos_token_id)[0] == ["<|begin|>", "a"]
    assert pieces(tokenizer, "", "b", begin=begin, alone=tokenizer.eos_token_id)[0] == ["<|begin|>"]


@pytest.mark.parametrize(("question", "option", "said"), [("a", "", "has no token"), ("", "b", "behind nothing")])
def test_an_option_that_cannot_be_scored_is_said(tokenizer: Any, question: str, option: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        pieces(tokenizer, question, option)


ROWS = [
    Continuation((5, 17, 9, 22, 31, 4, 19, 40, 8), (33, 12, 7)),
    Continuation((7,), (2,)),
    Continuation((0, 0, 28), (0, 0)),  # the padding id as text
    Continuation((44, 3), (25, 25, 6, 18, 39, 2)),
]


def logits_of(model: Any) -> Any:
    return lambda ids, mask, at: model(ids, attention_mask=mask).logits[at]


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_gives_what_one_call_a_token_gives(kind: str) -> None:
    model = language_model(kind)
    expected = [slowly_scored(model, row.context, row.target) for row in ROWS]
    for batch_size in (1, 3, 9):
        found = log_likelihoods(logits_of(model), ROWS, batch_size=batch_size)
        assert [one.logp for one in found] == pytest.approx([math.fsum(own) for own in expected], abs=1e-4)
        assert [one.tokens for one in found] == [3, 1, 2, 6]


def test_the_likeliest_continuation_is_greedy_and_another_is_not() -> None:
    model = language_model("llama")
    best = int(model(torch.tensor([[5, 17, 9]])).logits[0, -1].argmax())
    rows = [Continuation((5, 17, 9), (best,)), Continuation((5, 17, 9), ((best + 1) % 48,))]
    found = log_likelihoods(logits_of(model), rows, batch_size=2)
    assert [one.greedy for one in found] == [True, False]


def test_beyond_the_limit_the_end_is_read() -> None:
    """Four ids are read; the last of the target is not read, but scored."""
    model = language_model("gpt2")
    row = Continuation((5, 17, 9, 22), (31, 4))
    found = log_likelihoods(logits_of(model), [row], batch_size=1, limit=4)
    assert found[0].cut == 1
    assert found[0].logp == pytest.approx(sum(slowly_scored(model, (17, 9, 22), (31, 4))), abs=1e-4)


def test_logits_in_bf16_are_summed_in_float32() -> None:
    logits = torch.randn(7, 5000, generator=torch.Generator().manual_seed(0)).bfloat16()
    ids = torch.arange(7)
    expected = logits.double().log_softmax(-1)[torch.arange(7), ids]
    torch.testing.assert_close(token_log_likelihoods(logits, ids).double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("size", "stride", "read", "scored"),
    [
        (5, 4, [5, 5, 3], [4, 4, 1]),  # lm-evaluation-harness, of which a window's first is the last of the one before
        (5, 2, [5, 5, 5, 5], [4, 2, 2, 1]),
        (64, 1, [10], [9]),
    ],
)
def test_every_token_is_scored_once(size: int, stride: int, read: list[int], scored: list[int]) -> None:
    ids = list(range(100, 110))
    found = list(windows(ids, size, stride))
    assert [token for window in found for token in window.target] == ids[1:]
    assert [len(window) for window in found][:-1] == read[:-1]
    assert [len(window.target) for window in found] == scored
    assert all(len(window) <= size for window in found)
    ends = [window.context[-1] + 1 == window.target[0] for window in found]
    assert all(ends)  # what stands before a token is what stands before it in the text
    assert not list(windows([1], size, stride))


def test_a_stride_that_is_no_stride_is_said() -> None:
    with pytest.raises(DataError, match="at least 1 and at most 4"):
        list(windows([1, 2, 3], 5, 5))


def test_perplexity_weighs_tokens_and_not_texts() -> None:
    """Two tokens of probability 1/2, one of 1/16: the mean of -log p is 2 log 2, whatever the texts."""
    found = fit([(-2 * math.log(2), 2), (-math.log(16), 1)], ["ab", "ü"])
    assert (found.tokens, found.utf8_bytes) == (3, 4)
    assert found.perplexity == pytest.approx(4.0)
    assert found.bits_per_byte == pytest.approx(6 / 4)
