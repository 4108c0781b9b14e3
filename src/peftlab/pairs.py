"""Two texts in one row: a premise and a hypothesis, a question and a passage.

A pair is one string with the record separator of ASCII (U+001E) between its texts. Whatever handles texts (splits,
duplicates, hashes, the token cache, prediction) so handles pairs; only tokenizers take them apart, and texts that come
in are refused if they hold that character.
"""

from __future__ import annotations

SEPARATOR = "\x1e"


def paired(first: str, second: str) -> str:
    """The pair as one string."""
    assert SEPARATOR not in first + second
    return f"{first}{SEPARATOR}{second}"


def parts(text: str) -> list[str]:
    """The texts of a row: one, or the two of a pair."""
    return text.split(SEPARATOR, 1)


def is_pair(text: str) -> bool:
    """Whether the row has two texts."""
    return SEPARATOR in text
