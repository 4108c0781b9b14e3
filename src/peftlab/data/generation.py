"""What ``data.generate`` says: that a model is asked to write its answers, and how these are judged. Imports no torch.

generate: {max_new_tokens: 32, judge: exact_match}
generate: {max_new_tokens: 256, judge: [number, rouge_l], stop: ["\\n\\n"]}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from peftlab.errors import nearest
from peftlab.language.answers import RULES, Judge

KEYS = ("max_new_tokens", "judge", "stop")
MAX_NEW_TOKENS = 64
"""Where nothing is said."""


@dataclass(frozen=True)
class Generation:
    """Greedy answers: the likeliest token each time, up to a stop token."""

    max_new_tokens: int = MAX_NEW_TOKENS
    """Of an answer, at most."""
    judges: tuple[Judge, ...] = ("exact_match",)
    """The figures, by :data:`~peftlab.language.answers.RULES`."""
    stop: tuple[str, ...] = ()
    """Texts before the earliest of which an answer ends."""

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Generation:
        """What ``data.generate`` says.

        Raises:
            ValueError: naming the key that says something else.
        """
        if unknown := [str(key) for key in given if key not in KEYS]:
            raise ValueError(
                f"data.generate has no key '{unknown[0]}'.{nearest(unknown[0], KEYS)} It has: {', '.join(KEYS)}."
            )
        new = given.get("max_new_tokens", MAX_NEW_TOKENS)
        if isinstance(new, bool) or not isinstance(new, int) or new < 1:
            raise ValueError(f"data.generate.max_new_tokens={new!r} must be a whole number from 1 on.")
        return cls(new, _judges(given.get("judge", "exact_match")), _stops(given.get("stop") or ()))


def _judges(given: Any) -> tuple[Judge, ...]:
    named = [given] if isinstance(given, str) else given
    if not isinstance(named, list | tuple) or not named or len(set(map(str, named))) < len(named):
        raise ValueError(f"data.generate.judge={given!r} must be one or several of {', '.join(RULES)}.")
    for name in named:
        if name not in RULES:
            raise ValueError(
                f"data.generate.judge: '{name}' is not known. It must be one or several of {', '.join(RULES)}."
                f"{nearest(str(name), RULES)}"
            )
    return tuple(cast(Judge, name) for name in named)


def _stops(given: Any) -> tuple[str, ...]:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) and text for text in texts):
        raise ValueError(f"data.generate.stop={given!r} must be a list of texts, none of them empty.")
    return tuple(texts)
