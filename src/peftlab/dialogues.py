"""What a language model learns from in one row: turns, each with a role, the last an answer.

As a pair of texts is (:mod:`peftlab.pairs`), a dialogue is one string: JSON of ``[[role, content], …]``, always written
in the same way. Whatever handles texts (splits, duplicates, hashes, the token cache) so handles dialogues; only what
makes tokens takes them apart. A prompt with its response is a dialogue of two turns.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

ASKS, ANSWERS, SYSTEM = "user", "assistant", "system"
ROLES = (SYSTEM, ASKS, ANSWERS)


class Turn(NamedTuple):
    """Who says what."""

    role: str
    content: str


def written(turns: Sequence[Turn]) -> str:
    """The dialogue as one string."""
    return json.dumps(turns, ensure_ascii=False, separators=(",", ":"))


def turns_of(text: str) -> list[Turn]:
    """The turns of a dialogue that :func:`written` has made."""
    return [Turn(role, content) for role, content in json.loads(text)]


def out_of_order(turns: Sequence[Turn]) -> str:
    """What is wrong with the order of the roles, in words; empty: nothing.

    A system turn may stand first; then user and assistant follow each other, a user first, an assistant last.
    """
    for number, turn in enumerate(turns, start=1):
        if turn.role not in ROLES:
            return f"message {number} has the role '{turn.role}'; roles are {', '.join(ROLES)}"
    rest = turns[1:] if turns and turns[0].role == SYSTEM else turns
    skipped = len(turns) - len(rest)
    for number, turn in enumerate(rest):
        wanted = ANSWERS if number % 2 else ASKS
        if turn.role != wanted:
            before = turns[number + skipped - 1].role if number + skipped else "the beginning"
            return f"message {number + skipped + 1} is of the {turn.role}, but behind {before} comes the {wanted}"
    if not rest:
        return "there is no message of a user"
    if rest[-1].role != ANSWERS:
        return f"the last message is of the {rest[-1].role}, so there is no answer to learn"
    return ""
