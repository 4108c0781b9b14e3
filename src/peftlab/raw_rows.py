"""Rows as a file has them, before anybody has looked at what their cells mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

FROM_0 = "counted from 0"
"""What rows are called that nobody names but Python, which holds them."""


@dataclass(frozen=True)
class RawRows:
    """The text and label cells of one file, unchecked.

    ``lines[row]`` is the line where the row begins; None where a file has no lines.
    """

    name: str
    texts: list[object]
    labels: list[object]
    lines: Sequence[int] | None = None
    text_column: str = "text"
    label_column: str = "label"
    seconds: list[object] | None = None
    """The second text of each row, where a row has two."""
    second_column: str = ""
    faults: dict[int, str] = field(default_factory=dict)
    """Rows that could not be taken apart, and why, place included; their cells are None."""
    editable: bool = True
    """Whether who reads the rows can mend them; nobody can those of the hub."""
    index: Sequence[object] | None = None
    """What the holder of the rows calls each, where no file has them: a frame's own index, or positions from 0."""
    index_name: str = ""
    """What that is: ``its index``."""

    def place(self, row: int) -> str:
        """``reviews.csv, row 3 (line 4)`` for the zero-based ``row``; ``data=DataFrame, row 2 (its index)``."""
        if self.index is not None:
            return f"{self.name}, row {self.index[row]!r} ({self.index_name})"
        where = f"{self.name}, row {row + 1}"
        return where if self.lines is None else f"{where} (line {self.lines[row]})"
