"""Text as Markdown prints it, letter for letter."""

from __future__ import annotations

import re
from collections.abc import Iterable

_ANYWHERE = re.compile(r"[\\`*~$|]|(?<![^\W_])_|_(?![^\W_])|\](?=[(\[:])")
"""What means something wherever it stands; _ only beside a word, since lora_rank is no emphasis."""
_AT_THE_START = re.compile(r"^(#|>|[-+](?= )|\d+(?=[.)](?: |$))|=+$|-+$)")
_TAG = re.compile(r"<(?=[A-Za-z/!?])")
_ENTITY = re.compile(r"&(?=#?\w+;)")


def escaped(text: str) -> str:
    r"""``text`` in one line, with nothing in it that Markdown, HTML or GitHub's formulas would read as their own."""
    text = " ".join(text.split())
    text = _ANYWHERE.sub(lambda found: f"\\{found[0]}", text)
    text = _TAG.sub("&lt;", _ENTITY.sub("&amp;", text))
    return _AT_THE_START.sub(_at_the_start, text)


def _at_the_start(found: re.Match[str]) -> str:
    return f"{found[0]}\\" if found[0].isdigit() else f"\\{found[0]}"


def table_line(cells: Iterable[str]) -> str:
    """A line of a table, of escaped cells."""
    return "| " + " | ".join(cells) + " |"
