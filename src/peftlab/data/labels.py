"""Cells of a table to texts and labels."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from peftlab.data.base import Texts
from peftlab.errors import DataError
from peftlab.objectives.base import Label, LabelReader
from peftlab.pairs import is_pair, paired
from peftlab.raw_rows import RawRows
from peftlab.terminal import half_character

logger = logging.getLogger(__name__)

SHOWN = 20
"""Rows that cannot be used and are named in one message; of more the number is given."""
NO_TEXT, NO_LABEL = "without text", "without label"
"""Why rows that nobody can edit are left out."""


def to_texts(table: RawRows, labels: LabelReader) -> Texts:
    """The rows of ``table`` with checked texts and labels.

    Raises:
        DataError: naming file and row of every cell that cannot be used.
    """
    return read_rows(table, labels)[0]


def read_rows(table: RawRows, labels: LabelReader) -> tuple[Texts, dict[str, int]]:
    """The same, and how many rows were left out, by why: of rows that nobody can edit those without text or label.

    Raises:
        DataError: naming file and row of every other cell that cannot be used, all in one message.
    """
    texts: list[str] = []
    found: list[Label] = []
    faults: dict[int, str] = {}
    left_out: Counter[str] = Counter()
    for row in range(len(table.texts)):
        if not table.editable and (why := _lacks(table, row)):
            left_out[why] += 1
            continue
        try:
            _require_whole(table, row, table.labels[row], f"the label (column '{table.label_column}')")
            text, label = _text(table, row), labels.read(table, row)
        except DataError as error:
            faults[row] = str(error)
            continue
        texts.append(text)
        found.append(label)
    if faults:
        raise refusal(table, faults)
    return Texts(texts, found), dict(left_out)


def read_tables(tables: Sequence[RawRows], labels: LabelReader) -> tuple[list[Texts], list[dict[str, int]]]:
    """The texts of each table, and what was left out of it."""
    read = [read_rows(table, labels) for table in tables]
    return [texts for texts, _ in read], [left_out for _, left_out in read]


def left_out_facts(tables: Sequence[RawRows], left_out: Sequence[Mapping[str, int]]) -> dict[str, Any]:
    """What a record says of rows that were left out by rule, said aloud too; nothing if there are none."""
    found = {table.name: dict(one) for table, one in zip(tables, left_out, strict=True) if one}
    for name, one in found.items():
        logger.warning("%s: %s; nobody can mend them here.", name, said_of(one))
    return {"rows_left_out": found} if found else {}


def by_name(cells: Sequence[object], names: Sequence[str] | None) -> list[object]:
    """The labels of a ``datasets.ClassLabel`` column by their ``names``; -1 and None are no label.

    What has no names, and numbers that have none, stay as they are.
    """
    if names is None:
        return list(cells)
    known: dict[object, object] = {number: str(name) for number, name in enumerate(names)} | {-1: None}
    return [known.get(cell, cell) for cell in cells]


def said_of(left_out: Mapping[str, int]) -> str:
    """``2 rows without text left out``; empty if there are none."""
    said = ", ".join(f"{count:,} row{'s' if count > 1 else ''} {why}" for why, count in left_out.items())
    return f"{said} left out" if said else ""


def is_missing(cell: object) -> bool:
    """Whether a cell of a table holds nothing."""
    return cell is None or cell != cell or (isinstance(cell, str) and not cell.strip())


def _lacks(table: RawRows, row: int) -> str:
    if is_missing(table.texts[row]) or (table.seconds is not None and is_missing(table.seconds[row])):
        return NO_TEXT
    return NO_LABEL if is_missing(table.labels[row]) else ""


def refusal(table: RawRows, faults: Mapping[int, str]) -> DataError:
    """Every fault of the table: the first in full, then the others, those of one kind together."""
    (_, first), *others = faults.items()
    if not others:
        return DataError(first)
    same, alike = list[str](), dict[str, list[str]]()
    for row, fault in others[: SHOWN - 1]:
        place = table.place(row)
        short = place.removeprefix(f"{table.name}, ").removesuffix(f" ({table.index_name})")
        reason = fault.removeprefix(place)
        (same if first.endswith(reason) else alike.setdefault(reason, [])).append(short)
    lines = [first, f"{len(faults):,} of {len(table.texts):,} rows cannot be used; the others:"]
    if same:  # right behind the one that they are the same as
        lines.append(f"  {', '.join(same)}: the same")
    lines += [f"  {', '.join(places)}{reason}" for reason, places in alike.items()]
    if len(faults) > SHOWN:
        lines.append(f"  … and {len(faults) - SHOWN:,} more")
    return DataError("\n".join(lines))


def _text(table: RawRows, row: int) -> str:
    if row in table.faults:
        raise DataError(table.faults[row])
    checked = _checked_text(table, row, table.texts[row], table.text_column)
    if table.seconds is None:
        return checked
    return paired(checked, _checked_text(table, row, table.seconds[row], table.second_column))


def _checked_text(table: RawRows, row: int, text: object, column: str) -> str:
    if is_missing(text):
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
