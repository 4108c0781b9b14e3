"""Label cells to class indices: names, integers and what spreadsheets make of integers."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from peftlab.errors import DataError, counted, nearest

if TYPE_CHECKING:
    from peftlab.raw_rows import RawRows

logger = logging.getLogger(__name__)

# "1.0" is what a spreadsheet or pandas writes for 1 once a column has had a gap.
_INTEGER_LIKE = re.compile(r"(-?(?:0|[1-9][0-9]*))(?:\.0+)?")
_FRACTION = re.compile(r"-?[0-9]*\.[0-9]+")


def canonical(value: object) -> str | None:
    """The label as text, ``1.0`` as ``1`` and booleans as ``true``/``false``; None if there is none."""
    if value is None or value != value:  # NaN is what parquet files from pandas have for a missing cell
        return None
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value).strip()
    if match := _INTEGER_LIKE.fullmatch(text):
        return match.group(1)
    return text or None


class LabelSet:
    """The classes of a data set, in order, and how a cell names one of them.

    A cell may hold a class name, one of ``aliases``, or, where the names are declared and no integers themselves,
    the index of the class. Which number stands for which of the names that were found in a file nobody has said.
    """

    def __init__(
        self, names: Sequence[str], aliases: Mapping[str, int] | None = None, *, declared: bool = True
    ) -> None:
        self.names = tuple(names)
        self.declared = declared
        self._index = {_required(name): i for i, name in enumerate(self.names)}
        self._index |= dict(aliases or {})
        names_are_integers = any(_INTEGER_LIKE.fullmatch(name) for name in self.names)
        self.allows_index = declared and not names_are_integers
        if self.allows_index:
            self._index |= {str(i): i for i in range(len(self.names))}
            if len(self.names) == 2 and not {"true", "false"} & set(self._index):
                self._index |= {"false": 0, "true": 1}

    def index(self, value: object) -> int | None:
        """Index of the class that ``value`` names, or None."""
        text = canonical(value)
        return None if text is None else self._index.get(text)

    def read(self, table: RawRows, row: int) -> int:
        """Index of the class that the cell of ``row`` names.

        Raises:
            DataError: naming file and row of a cell that names none.
        """
        index = self.index(table.labels[row])
        if index is None:
            raise _label_error(table, row, table.labels[row], self)
        return index

    def describe(self) -> str:
        """``negative (0), positive (1)``: what a cell may hold, for messages."""
        if self.allows_index:
            return ", ".join(f"{name} ({i})" for i, name in enumerate(self.names))
        return ", ".join(self.names)


def _required(name: str) -> str:
    text = canonical(name)
    assert text is not None
    return text


def _label_error(table: RawRows, row: int, value: object, labels: LabelSet) -> DataError:
    text = canonical(value)
    if text is None:
        return DataError(
            f"{table.place(row)}: the label (column '{table.label_column}') is missing. Allowed: {labels.describe()}."
        )
    said = f"{table.place(row)}: unknown label {value!r} (column '{table.label_column}'). Allowed: {labels.describe()}."
    looks = next((name for name in labels.names if visible(name) == visible(text)), None)
    if looks is not None:
        return DataError(f"{said} It looks like {looks!a}, but is {text!a}: they differ in what cannot be seen.")
    cased = next((name for name in labels.names if visible(name).casefold() == visible(text).casefold()), None)
    if cased is not None:
        return DataError(f"{said} It differs from '{cased}' in upper and lower case alone: write it so.")
    if not labels.declared and (_INTEGER_LIKE.fullmatch(text) or text in ("true", "false")):
        return DataError(
            f"{said} The training labels are names, and which number is which nobody has said: give "
            "data.labels=[<name of 0>, <name of 1>, …]."
        )
    if not labels.declared and _is_fraction(value):
        return DataError(f"{said} {_FRACTION_HINT}")
    return DataError(f"{said}{nearest(text, labels.names)}")


_FRACTION_HINT = (
    "If labels are scores, train a regression: data.objective=regression; if it is the name of a class, list the "
    "classes in data.labels."
)


def _is_fraction(value: object) -> bool:
    return not isinstance(value, str | int | float) or _FRACTION.fullmatch(str(canonical(value))) is not None


def visible(name: str) -> str:
    """What can be seen of ``name``: composed characters, single spaces, nothing that shows nothing."""
    shown = "".join(c for c in unicodedata.normalize("NFC", name) if c.isspace() or not _shows_nothing(c))
    if (without := shown.translate(_JOINERS)).isascii():  # they shape scripts and emojis, and nothing else
        shown = without
    return " ".join(shown.split())


_JOINERS = {0x200C: None, 0x200D: None}
_VARIATION_SELECTORS = range(0xFE00, 0xFE10)


def _shows_nothing(character: str) -> bool:
    number = ord(character)
    return number in _VARIATION_SELECTORS or (
        unicodedata.category(character) in ("Cc", "Cf") and number not in _JOINERS
    )


def require_visible_differences(names: Sequence[str], place: str) -> None:
    """Refuse names that people cannot tell apart.

    Raises:
        DataError: naming ``place`` and showing the first two with what hides in them.
    """
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(visible(name), name)
        if other != name:
            raise DataError(
                f"{place}: the labels {other!a} and {name!a} look alike: they differ in what cannot be seen (spaces, "
                "how an accent is written, hidden characters), and would be two classes. Write them alike."
            )


def differing_in_case(names: Sequence[str]) -> list[list[str]]:
    """Those of ``names`` that differ in upper and lower case alone, together."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(visible(name).casefold(), []).append(name)
    return [found for found in alike.values() if len(found) > 1]


def tell_differing_in_case(tables: Sequence[RawRows], names: Sequence[str]) -> None:
    """Say aloud which labels of a file are classes of their own by upper and lower case alone, and how many rows each
    has."""
    if not (alike := differing_in_case(names)):
        return
    rows = Counter(canonical(label) for table in tables for label in table.labels)
    said = "; ".join(" and ".join(f"'{name}' ({counted(rows[name], 'row')})" for name in found) for found in alike)
    logger.warning(
        "%s, column %s: labels that differ in upper and lower case alone are classes of their own: %s. If they are the "
        "same, write them alike in the file; data.labels=[…] with those that are meant names the rows of the others.",
        tables[0].name,
        tables[0].label_column,
        said,
    )


def discover_labels(tables: Iterable[RawRows]) -> tuple[str, ...]:
    """The distinct labels of ``tables``, sorted: as numbers if all are integers, else as text.

    Rows without a label, or with one that is a fraction, have none; who reads the rows names all of them.

    Raises:
        DataError: if fractions are all there is beside less than two labels, naming file and row of the first.
    """
    found: set[str] = set()
    fraction: tuple[RawRows, int] | None = None
    for table in tables:
        for row, value in enumerate(table.labels):
            if (text := canonical(value)) is None:
                continue
            if _is_fraction(value):
                fraction = fraction or (table, row)
            else:
                found.add(text)
    if fraction is not None and len(found) < 2:
        table, row = fraction
        raise DataError(
            f"{table.place(row)}: the label {table.labels[row]!r} is not a class name or an integer. {_FRACTION_HINT}"
        )
    if all(_INTEGER_LIKE.fullmatch(name) for name in found):
        return tuple(sorted(found, key=int))
    return tuple(sorted(found))
