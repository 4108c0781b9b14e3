"""Cells of a table to texts and labels."""

from __future__ import annotations

from peftlab.data.base import Texts
from peftlab.errors import DataError
from peftlab.objectives.base import Label, LabelReader
from peftlab.pairs import is_pair, paired
from peftlab.raw_rows import RawRows
from peftlab.terminal import half_character


def to_texts(table: RawRows, labels: LabelReader) -> Texts:
    """The rows of ``table`` with checked texts and labels.

    Raises:
        DataError: naming file and row of the first cell that cannot be used.
    """
    texts: list[str] = []
    found: list[Label] = []
    for row, text in enumerate(table.texts):
        _require_whole(table, row, table.labels[row], f"the label (column '{table.label_column}')")
        checked = _checked_text(table, row, text, table.text_column)
        if table.seconds is not None:
            checked = paired(checked, _checked_text(table, row, table.seconds[row], table.second_column))
        texts.append(checked)
        found.append(labels.read(table, row))
    return Texts(texts, found)


def _checked_text(table: RawRows, row: int, text: object, column: str) -> str:
    if text is None or text != text or (isinstance(text, str) and not text.strip()):
        raise DataError(
            f"{table.place(row)}: the text (column '{column}') is empty. Remove the row or fill in its text."
        )
    if not isinstance(text, str):
        raise DataError(
            f"{table.place(row)}: the text (column '{column}') is not a string but "
            f"{text!r} ({type(text).__name__}). Put the text in quotes, or choose another column."
        )
    _require_whole(table, row, text, f"the text (column '{column}')")
    if is_pair(text):
        raise DataError(
            f"{table.place(row)}: the text (column '{column}') holds the control character U+001E, which stands "
            "between the two texts of a pair here. Take it out."
        )
    return text


def _require_whole(table: RawRows, row: int, cell: object, what: str) -> None:
    if isinstance(cell, str) and not cell.isascii() and (half := half_character(cell)) is not None:
        raise DataError(
            f"{table.place(row)}: {what} holds {half}, one half of a character, which nothing can write. The text was "
            "cut inside a character, or written by a program that did; write it anew, or take the half out."
        )
