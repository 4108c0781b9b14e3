"""What data.generate may say."""

from __future__ import annotations

from typing import Any

import pytest

from peftlab.data.generation import Generation
from peftlab.data.instructions import Instructions


def test_what_is_not_said_has_a_default() -> None:
    assert Generation.of({}) == Generation(64, ("exact_match",), ())
    given = {"judge": ["number", "bleu"], "max_new_tokens": 3, "stop": "\n"}
    assert Instructions(path="x", generate=given).generation() == Generation(3, ("number", "bleu"), ("\n",))
    assert Instructions(path="x").generation() is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"judges": "bleu"}, "has no key 'judges'. Did you mean 'judge'"),
        ({"judge": "accuracy"}, "'accuracy' is not known. It must be one or several of exact_match, number, bleu"),
        ({"judge": "rouge"}, "Did you mean 'rouge_l'"),
        ({"judge": []}, "must be one or several of"),
        ({"judge": ["bleu", "bleu"]}, "must be one or several of"),
        ({"max_new_tokens": 0}, "must be a whole number from 1 on"),
        ({"max_new_tokens": True}, "must be a whole number from 1 on"),
        ({"stop": [""]}, "must be a list of texts, none of them empty"),
        ({"stop": 3}, "must be a list of texts"),
    ],
)
def test_another_thing_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Instructions(path="x", generate=given)


def test_a_text_stands_in_the_slot_of_a_template() -> None:
    config = Instructions(path="x", template={"prompt": "Say {text}:", "response": "{label}"})
    assert config.as_prompt("red") == "Say red:"
    assert Instructions(path="x").as_prompt("red") == "red"
    config = Instructions(path="x", template={"prompt": "{a} and {b}:", "response": "{label}"})
    with pytest.raises(ValueError, match=r"has 2 columns \(a, b\), and one text was given"):
        config.as_prompt("red")
