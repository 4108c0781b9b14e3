"""The tests of two runs, text by text: on how many they differ, and on which. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from peftlab.errors import RunError
from peftlab.records.folder import RunFolder
from peftlab.records.predictions import read_predictions

if TYPE_CHECKING:
    import pyarrow

RIGHT, ERROR, NATS = "share of right labels", "squared error", "loss of a text in nats"
_Z = 1.959963984540054
"""0.975 quantile of the standard normal distribution."""


@dataclass(frozen=True)
class Disagreement:
    """A text of which the two say different things."""

    row: int
    """Of the test split, from 0, as in ``predictions.parquet``."""
    hash: str
    """Of text and label, as there."""
    label: str | float | None
    first: str | float | None
    """What the first run says: a label, a number, its answer, or the nats that the text costs it."""
    second: str | float | None
    difference: float
    """Score of the second minus that of the first: 1, 0 or −1 of labels."""
    task: str | None = None
    text: str | None = None
    """None where it could not be read again."""


@dataclass(frozen=True)
class ByText:
    """The test of two runs, text by text."""

    rows: int
    """Texts that are judged so; of tasks that differ in kind, those with labels."""
    judged: str
    """What a text is judged by: :data:`RIGHT`, :data:`ERROR` or :data:`NATS`."""
    difference: float
    """Mean of second minus first."""
    low: float
    high: float
    """95 % interval of the difference, from the spread over texts (the sampling of the test rows, not of seeds)."""
    only_first: int | None = None
    only_second: int | None = None
    """Texts that only one of the two labels rightly, of classifications."""
    p: float | None = None
    """Exact McNemar test (McNemar 1947): whether the two counts could come from equally good runs."""
    disagreements: tuple[Disagreement, ...] = ()
    """All of them: those of labels by row, those of numbers by how far they are apart."""


def by_text(folders: Sequence[RunFolder], records: Sequence[Mapping[str, Any]]) -> ByText:
    """Compare the two tests.

    Raises:
        RunError: if one kept no predictions, or the two not of the same texts.
    """
    tables = [read_predictions(folder, record) for folder, record in zip(folders, records, strict=True)]
    if tables[0]["hash"].to_pylist() != tables[1]["hash"].to_pylist():
        raise RunError(
            "the two were tested on different texts, or on the same in another order: nothing can be compared text by "
            "text. Leave --rows out."
        )
    (judged, rows, first), (other, others, second) = (_scores(table) for table in tables)
    if judged != other or rows != others:
        raise RunError(f"one is judged by {judged}, the other by {other}: leave --rows out.")
    low, mean, high = _interval([b - a for a, b in zip(first, second, strict=True)])
    found = ByText(
        len(rows), judged, mean, low, high, disagreements=_disagreements(tables, judged, rows, first, second)
    )
    if judged != RIGHT:
        return found
    only_first = sum(a > b for a, b in zip(first, second, strict=True))
    only_second = sum(b > a for a, b in zip(first, second, strict=True))
    p = exact_mcnemar(only_first, only_second)
    return replace(found, only_first=only_first, only_second=only_second, p=p)


def with_texts(found: ByText, texts: Mapping[str, str]) -> ByText:
    """``found`` with the texts of its disagreements, where ``texts`` (hash → text) has them."""
    return replace(found, disagreements=tuple(replace(one, text=texts.get(one.hash)) for one in found.disagreements))


def _scores(table: pyarrow.Table) -> tuple[str, list[int], list[float]]:
    """What rows are judged by, which are, and the score of each."""
    columns = set(table.column_names)
    gold = table["gold"].to_pylist() if "gold" in columns else []
    if {"gold", "predicted"} <= columns:
        said = table["predicted"].to_pylist()
        rows = [row for row, label in enumerate(gold) if label is not None]  # a row of a task with numbers has none
        return RIGHT, rows, [float(gold[row] == said[row]) for row in rows]
    every = list(range(len(table)))
    if "value" in columns:
        return ERROR, every, [(a - b) ** 2 for a, b in zip(gold, table["value"].to_pylist(), strict=True)]
    if "nats" in columns:
        return NATS, every, table["nats"].to_pylist()
    raise RunError("the predictions say neither a label nor a value of each text: leave --rows out.")


_SAYS = {RIGHT: "predicted", ERROR: "value", NATS: "nats"}


def _disagreements(
    tables: Sequence[pyarrow.Table], judged: str, rows: Sequence[int], first: Sequence[float], second: Sequence[float]
) -> tuple[Disagreement, ...]:
    says = _SAYS[judged]
    if judged == NATS and all("generated" in table.column_names for table in tables):
        says = "generated"
    said = [table[says].to_pylist() for table in tables]
    columns = {name: tables[0][name].to_pylist() for name in ("row", "hash", "gold", "reference", "task") if
               name in tables[0].column_names}  # fmt: skip
    labels = columns.get("reference") or columns.get("gold") or [None] * len(said[0])
    tasks = columns.get("task") or [None] * len(said[0])
    found = [
        Disagreement(
            columns["row"][row], columns["hash"][row], labels[row], said[0][row], said[1][row], b - a, tasks[row]
        )
        for row, a, b in zip(rows, first, second, strict=True)
        if said[0][row] != said[1][row]
    ]
    return tuple(found if judged == RIGHT else sorted(found, key=lambda one: -abs(one.difference)))


def _interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """Lower end, mean and upper end of the 95 % interval of the mean, by the normal approximation."""
    count = len(differences)
    mean = math.fsum(differences) / count
    if count < 2:
        return -math.inf, mean, math.inf
    variance = math.fsum((value - mean) ** 2 for value in differences) / (count - 1)
    half = _Z * math.sqrt(variance / count)
    return mean - half, mean, mean + half


def exact_mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p of the two counts under a fair coin; in whole numbers up to the last division."""
    total, least = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(total, k) for k in range(least + 1))
    return float(min(1.0, 2 * tail / 2**total))
