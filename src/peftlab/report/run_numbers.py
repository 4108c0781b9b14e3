"""The numbers of single runs that a page compares by: values, texts, curves, and the quantiles of their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

from peftlab.metric_names import TRAIN_LOSS
from peftlab.report.columns import Column
from peftlab.report.groups import Group
from peftlab.report.records import Run
from peftlab.report.records_config import COMPUTED
from peftlab.report.report import Report
from peftlab.report.statistics import LEVEL

MOST_POINTS = 200_000
"""Points of all curves of a page: some two megabytes."""
FEWEST, MOST_OF_A_CURVE = 10, 200
"""Points that a curve has at least, where it has more in the record, and at most."""

Curves = list[tuple[int, list[float | None]]]
"""Of each quantity, the number of its epochs in :attr:`RunNumbers.epochs`, and its values."""


def quantities_of(report: Report) -> list[str]:
    """What there are curves of."""
    return list(dict.fromkeys((TRAIN_LOSS.in_history, report.curve)))


def in_percent(report: Report, quantity: str) -> bool:
    """Whether the page writes this one in percent."""
    return quantity == report.curve and report.curve_in_percent


def seeds_of(report: Report) -> list[int]:
    """All seeds of the rows, those without a result too."""
    missing = (int(seed) for group in report.rows for seed in group.missing if seed.isdigit())
    return sorted({run.seed for group in report.rows for run in group.runs} | set(missing))


def quantiles_of(report: Report) -> list[float]:
    """The quantile of Student's t that a 95 % interval reaches to, for 1, 2, … degrees of freedom."""
    most = max((len(group.runs) for group in report.rows), default=0)
    if most < 2:
        return []
    from scipy.special import stdtrit  # type: ignore[import-untyped]

    return [float(stdtrit(freedom, 1 - LEVEL / 2)) for freedom in range(1, most)]


def keys_of(group: Group) -> tuple[dict[str, str], str]:
    """The keys of ``group`` that rows can be put together by, and how its runs were computed, which none is across."""
    return {key: value for key, value in group.keys.items() if key != COMPUTED}, group.keys.get(COMPUTED, "")


def short_keys(report: Report) -> list[tuple[str, str]]:
    """These keys of all rows, each with how short it can be said."""
    return [(key, short) for key, short in report.grouped.key_names.items() if key != COMPUTED]


class RunNumbers:
    """What is known of each run, for as many curves as a page can hold; runs are asked for in the order of rows."""

    def __init__(self, report: Report) -> None:
        self._columns, self._quantities = report.columns, quantities_of(report)
        self._scales = [100 if in_percent(report, name) else 1 for name in self._quantities]
        self._folders = report.same.texts
        self._texts = {name: number for number, name in enumerate(dict.fromkeys(self._folders.values()))}
        runs = [run for group in report.rows for run in group.runs]
        count = sum(bool(run.curve.get(name)) for run in runs for name in self._quantities)
        self._most = max(FEWEST, min(MOST_OF_A_CURVE, MOST_POINTS // max(count, 1)))
        self._left = MOST_POINTS
        self._epochs: dict[tuple[float, ...], int] = {}

    @property
    def epochs(self) -> list[tuple[float, ...]]:
        """The epochs of the curves that were asked for; many curves share one."""
        return list(self._epochs)

    def values(self, run: Run) -> list[float | str | None]:
        """In the order of the columns; texts where a column is of texts."""
        return [_text(run, one) if one.format == "text" else _number(run, one) for one in self._columns]

    def texts(self, run: Run) -> int:
        """The same number for runs that were measured on the same texts."""
        return self._texts[self._folders[run.folder]]

    def curves(self, run: Run) -> Curves | None:
        """Those of ``run``; None where the page is full."""
        found = [_thinned(run.curve.get(name, ()), self._most) for name in self._quantities]
        if (size := sum(map(len, found))) > self._left:
            return None
        self._left -= size
        return [
            (self._numbered(curve), [_short(scale * value) for _, value in curve])
            for curve, scale in zip(found, self._scales, strict=True)
        ]

    def _numbered(self, curve: Sequence[tuple[float, float]]) -> int:
        return self._epochs.setdefault(tuple(float(f"{place:.6g}") for place, _ in curve), len(self._epochs))


def _text(run: Run, column: Column) -> str:
    value = run.values.get(column.value)
    return "null" if value is None else str(value)


def _number(run: Run, column: Column) -> float | str | None:
    """The value, or its name as text where JSON has no such number."""
    value = run.number(column.value)
    return value if value is None or isfinite(value) else str(value)


def _thinned(curve: Sequence[tuple[float, float]], most: int) -> Sequence[tuple[float, float]]:
    """At most ``most`` of the points, at equal distances, the first and the last among them."""
    if len(curve) <= most:
        return curve
    return [curve[round(number * (len(curve) - 1) / (most - 1))] for number in range(most)]


def _short(value: float) -> float | None:
    """Six digits, more than a picture can show; None for what is no finite number."""
    return float(f"{value:.6g}") if isfinite(value) else None
