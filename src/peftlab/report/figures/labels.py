"""Labels that fit into a picture and still differ: rows of a sweep often differ at the end of a long label alone."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

ELLIPSIS = "…"
_SHARES = (0.6, 0.3, 0.8, 0.1)
"""How much of a shortened label is its beginning; the first that leaves the labels different is taken."""


def fitting(labels: Sequence[str], width: int, *, lines: int) -> list[str]:
    """Each of ``labels`` in at most ``lines`` lines of ``width`` characters, different where they were different.

    What is too long loses its middle; where that makes two alike, what all have in common; else it gets a number.
    ``$`` is no formula.
    """
    wanted = [" ".join(label.split()) for label in labels]
    for share in _SHARES:
        found = [_cut(text, width, lines, share) for text in wanted]
        if len(set(found)) == len(set(wanted)):
            return list(map(_plain, found))
    first, last = min(wanted), max(wanted)  # what these have in common, all have
    common = next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    start = first[:common].rpartition(" ")[0]
    parts = [f"{ELLIPSIS}{text[len(start) :]}" if start else text for text in wanted]
    found = [_cut(text, width, lines, _SHARES[0]) for text in parts]
    if len(set(found)) < len(set(wanted)):
        number = {text: place for place, text in enumerate(dict.fromkeys(wanted), 1)}
        found = [_cut(f"({number[text]}) {text}", width, lines, _SHARES[0]) for text in wanted]
    return list(map(_plain, found))


def _cut(text: str, width: int, lines: int, share: float) -> str:
    """``text`` in lines; without its middle if they are too many, of which no more than must be."""
    parts = textwrap.wrap(text, width)
    room = width * lines
    while len(parts) > lines:
        room -= 2
        head = round((room - 3) * share)
        tail = room - 3 - head
        parts = textwrap.wrap(f"{text[:head].rstrip()} {ELLIPSIS} {text[len(text) - tail :].lstrip()}", width)
    return "\n".join(parts)


def _plain(text: str) -> str:
    return text.replace("$", r"\$")


def by_id(groups: Iterable[tuple[str, str]], width: int, *, lines: int) -> dict[str, str]:
    """Id → fitting label, of pairs of both."""
    pairs = list(groups)
    texts = fitting([label for _, label in pairs], width, lines=lines)
    return {name: text for (name, _), text in zip(pairs, texts, strict=True)}
