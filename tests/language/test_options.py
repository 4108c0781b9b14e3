"""Which tokens are an option's, against the rule, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from peftlab.errors import DataError
from peftlab.language.options import Continuation, split
from tests.language.tiny import byte_tokenizer


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
