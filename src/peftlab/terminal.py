"""What files and people have written, as text for a terminal: no escape sequence of theirs reaches it."""

from __future__ import annotations

import os
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TextIO

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


def columns_of(stream: TextIO) -> int | None:
    """How many signs a line of the terminal behind ``stream`` has; None if there is none."""
    with suppress(OSError, ValueError):  # no terminal, or no descriptor
        return os.get_terminal_size(stream.fileno()).columns or None
    return None


def filled(text: str, width: int, *, first: str = "", then: str = "") -> list[str]:
    """``text`` in lines of at most ``width`` signs, broken at spaces alone: no word, path or identifier is cut.

    Args:
        text: of one line.
        width: with what stands in front.
        first: in front of the first line.
        then: in front of the others.
    """
    return textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=then, break_long_words=False, break_on_hyphens=False
    )


def fitted(text: str, width: int = 80, hanging: int = 4) -> str:
    """``text`` in lines of at most ``width`` signs: longer ones go on below, ``hanging`` signs further right."""
    lines = []
    for line in text.splitlines():
        indent = " " * (len(line) - len(line.lstrip()) + hanging)
        lines += filled(line, width, then=indent) if len(line) > width else [line]
    return "\n".join([*lines, ""])


def say(text: str, *, then: str = "  ", file: TextIO | None = None) -> None:
    """Print ``text`` at once; on a terminal no word or path of it is cut in two.

    Args:
        text: of one line or several.
        then: in front of what goes on below a line, beside the line's own indent.
        file: standard output, or standard error.
    """
    stream = file or sys.stdout
    width = columns_of(stream)
    print(text if width is None else fitted(text, width, hanging=len(then)).rstrip("\n"), file=stream, flush=True)


def say_command(text: str, *, first: str = "", file: TextIO | None = None) -> None:
    """Print a command at once; where a terminal is too narrow, on lines that a shell takes together.

    Args:
        text: as for a shell.
        first: in front of it.
        file: standard output, or standard error.
    """
    stream = file or sys.stdout
    width = columns_of(stream)
    fits = width is None or len(first) + len(text) <= width
    print(first + text if fits else "\n".join(_command(text, width or 80, first, "    ")), file=stream, flush=True)


_ITEM = re.compile(r"- |\d+\. ")
_COMMAND = re.compile(r"\s*(peftlab |pip |make |')")
_WORD = re.compile(r"""(?:'[^']*'|"[^"]*"|<[^>]*>|\S)+""")
"""Of a command: what a shell, or who fills in its <…>, takes for one."""
_APART = re.compile(r"\s{4,}")
"""Between equations of one line, or a command and what is said of it."""


def flowed(text: str, width: int) -> str:
    """``text`` as docstrings and heads of files have it, in lines of at most ``width`` signs.

    Prose and the items of lists are flowed anew. Indented lines, which are equations and commands, stay lines of their
    own; one that is too long is broken where its parts stand apart, then at spaces, and a command in a way that a shell
    takes it as it stands.
    """
    blocks = ("\n".join(_block(block.splitlines(), width)) for block in text.split("\n\n"))
    return "\n\n".join(blocks)


def _block(lines: Sequence[str], width: int) -> Iterator[str]:
    prose: list[str] = []
    goes_on = False
    for line in [*lines, ""]:
        is_item, is_indented = _ITEM.match(line) is not None, line.startswith(" ")
        belongs = bool(prose) and (_ITEM.match(prose[0]) is not None if is_indented else not is_item)
        if line and (belongs or not is_indented) and not (is_item and prose):
            prose.append(line.strip())
            continue
        yield from _flow(prose, width)
        prose = [line] if is_item else []
        if line and not is_item:
            yield from _kept(line, width, command=goes_on or _COMMAND.match(line) is not None)
            goes_on = line.endswith("\\")


def _flow(prose: Sequence[str], width: int) -> list[str]:
    item = _ITEM.match(prose[0]) if prose else None
    return filled(" ".join(prose), width, then=" " * (len(item.group()) if item else 0))


def _kept(line: str, width: int, *, command: bool) -> Iterator[str]:
    """An indented ``line``, on as many as it needs."""
    if len(line) <= width:
        yield line
        return
    indent = line[: len(line) - len(line.lstrip())]
    indent = indent if len(indent) < width // 4 else "    "
    below = f"{indent}    "
    parts = _APART.split(line.strip())
    if command:
        yield from _command(parts.pop(0), width, indent, below)
        indent = below
    line = indent
    for part in parts:
        if line.strip() and len(line) + len(part) > width:
            yield from filled(line.strip(), width, first=indent, then=below)
            line = indent = below
        line += f"{part}    "
    if line.strip():
        yield from filled(line.strip(), width, first=indent, then=below)


def _command(text: str, width: int, begin: str, below: str) -> Iterator[str]:
    line = begin
    for word in _WORD.findall(text):
        if line.strip() and len(line) + len(word) + 2 > width:
            yield f"{line}\\"
            line = below
        line += f"{word} "
    yield line.rstrip()
