"""A question with its options as one string, as a dialogue is one (:mod:`peftlab.dialogues`).

JSON of ``[question, [option, …], answer]``, always written in the same way; the answer counts from 0. What handles
texts handles it as it is; only what makes tokens takes it apart.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple


class Question(NamedTuple):
    """What is asked, as the model reads it: options are written with what stands before them."""

    text: str
    options: tuple[str, ...]
    answer: int


def written(text: str, options: Sequence[str], answer: int) -> str:
    """The question as one string."""
    return json.dumps([text, list(options), answer], ensure_ascii=False, separators=(",", ":"))


def question_of(text: str) -> Question:
    """The question that :func:`written` has made a string of."""
    asked, options, answer = json.loads(text)
    return Question(asked, tuple(options), answer)
