"""How often a report calls a row worse that is not, and how often it finds one that is: by simulated tables.

    python benchmarks/marks.py [--tables 4000]

Null tables have rows without any true difference. A table errs if any row is called worse than the best (it lacks the
mark of those that cannot be told from it), or if any interval against a baseline does not hold the true difference.
(Bonferroni's bound keeps intervals at 5 % or less for normal values: what is above that is the simulation's own error.)
Beside that stands what paired t-tests with Holm's correction would do, as if the best had been named before. Power: how
often one row is called worse whose true mean is 2, 4 or 8 standard deviations of a run below that of all others, where
spreads are equal.

Exits with status 1 if an error of marks or intervals is above 5 % by more than two standard errors of the simulation.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.special import stdtr  # type: ignore[import-untyped]

from peftlab.report.best import against_best
from peftlab.report.statistics import LEVEL, compare

SHIFTS = (2.0, 4.0, 8.0)
"""Real differences, in standard deviations of a run."""


@dataclass(frozen=True)
class Design:
    """Tables of one kind."""

    name: str
    spreads: Sequence[float]
    """Standard deviation of a run, a number a row."""
    seeds: Sequence[int]
    """How many there are, a number a row."""
    together: float = 0.0
    """Correlation of the rows of one seed."""

    def tables(self, count: int, shift: float = 0.0) -> Any:
        """``count`` tables, (seed, row) each; the last row is ``shift`` lower; NaN where a row has no such seed."""
        draw = np.random.default_rng([len(self.spreads), max(self.seeds), count])
        for _ in range(count):
            own = draw.normal(size=(max(self.seeds), len(self.spreads)))
            common = draw.normal(size=(max(self.seeds), 1))
            table = (np.sqrt(1 - self.together) * own + np.sqrt(self.together) * common) * self.spreads
            table[:, -1] -= shift
            table[np.arange(len(table))[:, None] >= np.array(self.seeds)] = np.nan
            yield table

    @cached_property
    def shape(self) -> str:
        """Rows × seeds."""
        few, many = min(self.seeds), max(self.seeds)
        return f"{len(self.seeds)} x {few}" + (f" to {many}" if many > few else "")


def designs() -> list[Design]:
    """Sizes as tables of ablations have them; spreads that are equal, or not."""
    found = []
    for rows, seeds in ((3, 3), (6, 3), (12, 3), (24, 3), (12, 5), (24, 10)):
        found += [
            Design("equal spreads", [1.0] * rows, [seeds] * rows),
            Design("one row's is ten times as large", [10.0] + [1.0] * (rows - 1), [seeds] * rows),
            Design("from 1 to 10", np.linspace(1, 10, rows).tolist(), [seeds] * rows),
            Design("equal, seeds go together (0.5)", [1.0] * rows, [seeds] * rows, 0.5),
        ]
    found += [
        Design("equal, some rows lost seeds", [1.0] * 12, [2, 3, 5] * 4),
        Design("where many are lost, five times as large", [5.0, 1.0] * 6, [3, 10] * 6),
    ]
    return found


def called_worse(table: Any) -> list[bool]:
    """For each row, whether a report calls it worse than the best."""
    rows = [column[np.isfinite(column)] for column in table.T]
    best = int(np.argmax([row.mean() for row in rows]))
    tests = iter(against_best(rows[best], [row for number, row in enumerate(rows) if number != best]))
    return [number != best and bool(next(tests).worse) for number in range(len(rows))]


def called_worse_by_holm(table: Any) -> bool:
    """Whether any row is by a paired t-test against the best with Holm's correction, whose first step decides that."""
    best = int(np.nanargmax(np.nanmean(table, axis=0)))
    differences = table[:, [best]] - np.delete(table, best, axis=1)
    shared = np.isfinite(differences).sum(axis=0)
    t = np.nanmean(differences, axis=0) / (np.nanstd(differences, axis=0, ddof=1) / np.sqrt(shared))
    return bool(2 * stdtr(shared - 1, -np.abs(t)).min() * len(t) < LEVEL)


def an_interval_misses(table: Any) -> bool:
    """Whether any interval of the comparisons with the first row does not hold zero."""
    rows = [{seed: float(value) for seed, value in enumerate(column) if np.isfinite(value)} for column in table.T]
    tests = [compare(row, rows[0], family=len(rows) - 1, bootstrap=False) for row in rows[1:]]
    return any(test.interval is not None and not test.interval[0] <= 0 <= test.interval[1] for test in tests)


def main() -> int:
    """Print a line a design."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tables", type=int, default=4000, help="how many are simulated for each figure")
    count = parser.parse_args().tables
    allowed = LEVEL + 2 * (LEVEL * (1 - LEVEL) / count) ** 0.5
    print(f"{count:,} tables each; a share of 5 % has a standard error of {100 * (allowed - LEVEL) / 2:.1f} %\n")
    heads = f"{'marks':>7}{'intervals':>11}{'Holm, best chosen':>19}   power at 2, 4, 8"
    print(f"{'rows x seeds':<13}{'spreads':<42}{heads}")
    highest = 0.0
    for design in designs():
        tables = list(design.tables(count))
        marks, intervals, holm = (
            float(np.mean([errs(table) for table in tables]))
            for errs in (lambda table: any(called_worse(table)), an_interval_misses, called_worse_by_holm)
        )
        highest = max(highest, marks, intervals)
        line = f"{design.shape:<13}{design.name:<42}{marks:>7.1%}{intervals:>11.1%}{holm:>19.1%}"
        if set(design.spreads) == {1.0}:
            found = [np.mean([called_worse(table)[-1] for table in design.tables(count, shift)]) for shift in SHIFTS]
            line += "   " + "  ".join(f"{share:.0%}" for share in found)
        print(line, flush=True)
    print(f"\nhighest error of marks or intervals: {highest:.1%}")
    return int(highest > allowed)


if __name__ == "__main__":
    sys.exit(main())
