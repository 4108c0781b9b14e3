"""The columns of a table, by name."""

from __future__ import annotations

from collections import Counter

from peftlab.errors import DataError, nearest


class MissingColumn(DataError):
    """A column that a file does not have."""


def check_columns(file: str, columns: list[str], text_column: str, label_column: str | None, between: str = "") -> None:
    """Refuse a table whose column names repeat, or that lacks one of those asked for.

    Args:
        file: where the table stands.
        columns: its names of columns.
        text_column: is asked for.
        label_column: is asked for too, unless None.
        between: what separates the columns, where the file's name says something else.

    Raises:
        DataError: naming the file and the column; :class:`MissingColumn` for one that is not there.
    """
    repeated = [name for name, count in Counter(columns).items() if count > 1]
    if repeated:
        raise DataError(f"{file}: column '{repeated[0]}' is there twice. Give every column its own name.")
    there = f"Columns there are, with the {between} between them" if between else "Columns there are"
    for key, wanted in (("text_column", text_column), ("label_column", label_column)):
        if wanted is not None and wanted not in columns:
            raise MissingColumn(
                f"{file}: there is no column '{wanted}' ({key}). "
                f"{there}: {', '.join(columns) or '(none)'}.{nearest(wanted, columns)}"
            )
