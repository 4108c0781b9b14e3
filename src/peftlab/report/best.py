"""Which rows differ from the best one of a table, where the same figures have chosen the best.

The best mean of many rows is the best partly by luck, so a test against it as if it had been named before calls rows
worse that are not: with 12 equal rows of 5 seeds in one table of eight. Whichever row is the best, its comparisons are
among those of all pairs; if none of these is wrong in 95 % of tables, no row is called worse without being so.

The test of all pairs is Dunnett's procedure C (Dunnett 1980, "Pairwise multiple comparisons in the unequal variance
case", J. Am. Stat. Assoc. 75:796-800). Of k rows, with v = s² / n, two differ where

    |mean₁ - mean₂| > (q₁ v₁ + q₂ v₂) / (v₁ + v₂) · √((v₁ + v₂) / 2)

and q is the 1 - level quantile of the studentized range of k values with n - 1 degrees of freedom. Rows may have
other spreads and other numbers of seeds. Seeds are not paired: of few pairs the spread of a difference is known too
badly, and where the rows of a seed go up and down together, the test errs on the safe side. ``benchmarks/marks.py``
simulates it, beside other procedures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import sqrt

import numpy as np

from peftlab.report.statistics import LEVEL


@dataclass(frozen=True)
class AgainstBest:
    """One row against the best."""

    difference: float
    """Mean of the best - mean of the row."""
    needed: float | None = None
    """The difference beyond which the row is another; None if that cannot be tested."""
    why_not: str = ""
    """Why it cannot."""

    @property
    def worse(self) -> bool | None:
        """Whether the row is significantly another than the best; None if that could not be tested."""
        return None if self.needed is None else abs(self.difference) > self.needed


def against_best(
    best: Sequence[float], others: Sequence[Sequence[float]], *, level: float = LEVEL
) -> list[AgainstBest]:
    """Compare each of ``others`` with ``best``, a value a seed each, at a family-wise error of ``level``.

    All values must be finite. Rows with fewer than two values are not tested, and do not count as rows.
    """
    rows = sum(len(values) > 1 for values in (best, *others))
    first = _Row.of(best)
    return [_compared(first, _Row.of(values), rows, level) for values in others]


@dataclass(frozen=True)
class _Row:
    """What is needed of a row's values."""

    seeds: int
    mean: float
    largest: float
    """Their largest magnitude."""
    variance: float
    """Of the mean; 0 with one seed, where it is not known."""

    @classmethod
    def of(cls, values: Sequence[float]) -> _Row:
        row = np.asarray(values)
        variance = float(row.var(ddof=1)) / len(row) if len(row) > 1 else 0.0
        return cls(len(row), float(row.mean()), float(np.abs(row).max()), variance)


def _compared(best: _Row, other: _Row, rows: int, level: float) -> AgainstBest:
    difference = best.mean - other.mean
    if best.seeds < 2 or other.seeds < 2:
        return AgainstBest(difference, why_not="one seed" if best.seeds > 1 else "the best has one seed")
    together = best.variance + other.variance
    rounding = 8 * np.finfo(float).eps * max(best.largest, other.largest)
    if together <= rounding**2:
        return AgainstBest(difference, why_not="the same value at every seed: no variance to test against")
    quantiles = [studentized_range(rows, of.seeds - 1, level) for of in (best, other)]
    weighted = (quantiles[0] * best.variance + quantiles[1] * other.variance) / together
    return AgainstBest(difference, weighted * sqrt(together / 2))


@cache
def studentized_range(values: int, degrees: int, level: float) -> float:
    """The 1 - level quantile of the range of ``values`` standard normals over a deviation of ``degrees`` of freedom."""
    from scipy.stats import studentized_range as distribution  # type: ignore[import-untyped]  # takes a second

    return float(distribution.ppf(1 - level, values, degrees))
