"""What of a table finds room on paper, with letters of 8 pt: long heads and texts are broken between words, and columns
that find no room beside the others stand below them. ``page_copy.js`` does the same."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from peftlab.report.table import Head, Table

ROOM = 345.0
"""Points that a table may be wide: the text of LaTeX's article; what is wider than others' columns LaTeX measures."""
TEXT = 130.0
"""Points that a text may be wide before it is broken."""
LETTERS = 8.0
"""Points of the smallest letters; ``table.tex`` says so too."""
GAP = 6.0
"""Points between two columns, beside the smallest letters."""
USUAL = 0.55
"""Width of a sign, in ems of Computer Modern, rather too wide than too narrow."""
WIDTHS = {
    sign: width
    for signs, width in (
        (" .,:;'|!ijl[]", 0.31), ("()frst/I-*\"", 0.42), ("ABCDEFGHJKLNOPQRSTUVXYZ", 0.76),
        ("mwMW@%&+<>=~±−×→≤≥–…", 0.86),
    )
    for sign in signs
}  # fmt: skip
"""Width of signs that are narrower or wider than most."""


@lru_cache(1 << 16)  # most cells are asked for twice, and many are alike
def width_of(text: str) -> float:
    """How wide ``text`` is in the smallest letters, in points."""
    return LETTERS * sum(WIDTHS.get(sign, USUAL) for sign in text)


def broken(text: str, room: float) -> list[str]:
    """``text`` in lines of at most ``room`` points, broken between words."""
    if LETTERS * len(text) <= room:  # as of most cells: no sign is as wide as its letters are high
        return [" ".join(text.split())]
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and width_of(longer) <= room:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines or [""]


def head_lines(table: Table) -> list[list[str]]:
    """The head of each column in lines, none wider than the column's widest cell or the head's widest word."""
    found = []
    for number, head in enumerate(table.heads):
        cells = max((_widest(broken(row.cells[number].text, _room(head))) for row in table.rows), default=0.0)
        found.append(broken(head.title, max(cells, _widest(head.title.split()))))
    return found


def cell_lines(text: str, head: Head) -> list[str]:
    """A cell of the column of ``head`` in lines."""
    return broken(text, _room(head))


def blocks_of(table: Table, heads: Sequence[Sequence[str]]) -> list[list[int]]:
    """Numbers of the columns that stand side by side, beside the leads, in as few blocks of one size as find room.

    Args:
        table: whose columns they are.
        heads: their heads, in lines.
    """
    widths = [
        max([_widest(heads[number]), *(_widest(cell_lines(row.cells[number].text, head)) for row in table.rows)])
        for number, head in enumerate(table.heads)
    ]
    figures = list(range(table.leads, len(table.heads)))
    blocks = [figures]
    for count in range(1, len(figures) + 1):
        size = -(-len(figures) // count)
        blocks = [figures[start : start + size] for start in range(0, len(figures), size)]
        side_by_side = [max(widths[of[place]] for of in blocks if place < len(of)) for place in range(size)]
        columns = [*widths[: table.leads], *side_by_side]
        if sum(columns) + GAP * (len(columns) - 1) <= ROOM:
            break
    return blocks


def _room(head: Head) -> float:
    return ROOM if head.number else TEXT


def _widest(lines: Sequence[str]) -> float:
    return max(map(width_of, lines), default=0.0)
