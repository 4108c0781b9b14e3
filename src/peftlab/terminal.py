"""What files and people have written, as text for a terminal: no escape sequence of theirs reaches it."""

from __future__ import annotations

import re
import textwrap

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but tab and line feed, those that turn the direction of what follows, and half characters."""
_HALF = re.compile("[\ud800-\udfff]")


def half_character(text: str) -> str | None:
    r"""The first half of a surrogate pair in ``text``, as ``\ud83d``; None if it is whole.

    JSON can say one, and a command line of other bytes than UTF-8 is full of them; nothing can write it again.
    """
    found = _HALF.search(text)
    return printable(found.group()) if found else None


def printable(text: str) -> str:
    r"""``text`` with ``\x1b`` and the like for what would move the cursor, colour the screen or hide words."""
    return _CONTROL.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


def fitted(text: str, width: int = 80, hanging: int = 4) -> str:
    """``text`` in lines of at most ``width`` signs: longer ones go on below, ``hanging`` signs further right."""
    lines = []
    for line in text.splitlines():
        indent = " " * (len(line) - len(line.lstrip()) + hanging)
        wrapped = textwrap.wrap(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
        lines += wrapped if len(line) > width else [line]
    return "\n".join([*lines, ""])
