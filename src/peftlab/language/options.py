"""Which tokens are an option's, and which its question's. Imports no torch.

The rule is lm-evaluation-harness's (``TemplateLM._encode_pair``), so that tables compare:

    white space at the end of the question moves to the option
    ids(question + option) is cut at len(ids(question)); what stands behind is the option

A token may stand across the line (``hello wor`` + ``ld``). Where the cut then leaves the option no token, where
lm-evaluation-harness scores nothing, question and option are read apart. Either way the pair is ``crossed``: the tokens
in front of the option are not those that the question has alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from peftlab.errors import DataError

Encode = Callable[[str], list[int]]
"""Ids of a text, to which no special token is added."""

RULE = (
    "white space at the end of the question is the option's; the joined text is tokenised and cut at the number of "
    "tokens of the question; where no token is left to the option, the two are tokenised apart"
)
"""The rule, as records say it."""


@dataclass(frozen=True)
class Continuation:
    """Ids that are given, and those whose likelihood is asked for."""

    context: tuple[int, ...]
    target: tuple[int, ...]
    crossed: bool = False
    """Whether a token stood across the line between the two."""

    def __len__(self) -> int:
        return len(self.context) + len(self.target)


def split(
    question: str, option: str, encode: Encode, begin: Sequence[int] = (), *, alone: int | None = None
) -> Continuation:
    """The tokens of ``question`` and of ``option`` behind it.

    Args:
        question: what stands before, without ``begin``; it may be empty.
        option: not empty.
        encode: the tokenizer, without special tokens.
        begin: ids that stand before every question.
        alone: the id that an option stands behind if there is nothing else: the tokenizer's first or end token.

    Raises:
        DataError: if the option has no token, or nothing stands before it.
    """
    bare = question.rstrip()
    option = question[len(bare) :] + option
    before = encode(bare) if bare else []
    target, crossed = encode(option), False
    if bare:
        whole = encode(bare + option)
        if len(whole) > len(before):
            crossed = whole[: len(before)] != before
            before, target = whole[: len(before)], whole[len(before) :]
        else:
            crossed = True
    if not target:
        raise DataError(f"the option {option!r} has no token, so that nothing can be said of its likelihood.")
    context = (*begin, *before)
    if not context and alone is not None:
        context = (alone,)
    if not context:
        raise DataError(
            f"the option {option!r} stands behind nothing: the question is empty, and the tokenizer has no token to "
            "begin with. Give the question a text."
        )
    return Continuation(context, tuple(target), crossed)
