"""Label cells to class indices: names, integers and what spreadsheets make of integers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from peftlab.errors import DataError, nearest

if TYPE_CHECKING:
    from peftlab.raw_rows import RawRows

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

    A cell may hold a class name, one of ``aliases``, or, unless the names are integers themselves,
    the index of the class.
    """

    def __init__(self, names: Sequence[str], aliases: Mapping[str, int] | None = None) -> None:
        self.names = tuple(names)
        self._index = {_required(name): i for i, name in enumerate(self.names)}
        self._index |= dict(aliases or {})
        names_are_integers = any(_INTEGER_LIKE.fullmatch(name) for name in self.names)
        self.allows_index = not names_are_integers
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
    return DataError(
        f"{table.place(row)}: unknown label {value!r} (column '{table.label_column}'). "
        f"Allowed: {labels.describe()}.{nearest(text, labels.names)}"
    )


def discover_labels(tables: Iterable[RawRows]) -> tuple[str, ...]:
    """The distinct labels of ``tables``, sorted: as numbers if all are integers, else as text.

    Raises:
        DataError: for a missing label or one that is a fraction, naming file and row.
    """
    found: set[str] = set()
    for table in tables:
        for row, value in enumerate(table.labels):
            text = canonical(value)
            if text is None:
                raise DataError(
                    f"{table.place(row)}: the label (column '{table.label_column}') is missing. "
                    "Remove the row or fill in its label."
                )
            if _FRACTION.fullmatch(text) or not isinstance(value, str | int | float):
                raise DataError(
                    f"{table.place(row)}: the label {value!r} is not a class name or an integer. If labels are "
                    "scores, train a regression: data.objective=regression; if it is the name of a class, list the "
                    "classes in data.labels."
                )
            found.add(text)
    if all(_INTEGER_LIKE.fullmatch(name) for name in found):
        return tuple(sorted(found, key=int))
    return tuple(sorted(found))
