"""Rows against one other row: a paired test each, over the seeds that both have and on the same texts only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from peftlab.errors import ConfigError, listed, nearest
from peftlab.report.groups import Group
from peftlab.report.same_rows import SameRows
from peftlab.report.statistics import Comparison, compare, corrected


@dataclass(frozen=True)
class Compared:
    """A row, and how it compares to the baseline."""

    group: Group
    test: Comparison


def comparisons_with(
    other: Group, groups: Sequence[Group], metric: str, same: SameRows, *, bootstrap: bool = True
) -> list[Comparison]:
    """How each of ``groups`` compares to ``other``, with Holm's correction over all of them."""
    values = other.by_seed(metric)
    return corrected(
        [
            compare(group.by_seed(metric), values, bootstrap=bootstrap)
            if same.pairable(group, other)
            else Comparison(0, why_not=same.why_not)
            for group in groups
        ]
    )


def row_called(name: str, rows: Sequence[Group]) -> Group | None:
    """The row of that id or label; upper and lower case are alike where no other name is exactly so."""
    exact = [group for group in rows if name in (group.id, group.label)]
    return next(iter(exact or [g for g in rows if name.lower() in (g.id.lower(), g.label.lower())]), None)


def baseline_asked_for(name: str, rows: Sequence[Group]) -> Group:
    """The row that ``--baseline`` names.

    Raises:
        ConfigError: if there is none.
    """
    if (found := row_called(name, rows)) is not None:
        return found
    names = [name for group in rows for name in (group.label, group.id)]
    raise ConfigError(
        f"--baseline {name}: no row is called so.{nearest(name, names)} "
        f"Rows: {listed({group.label for group in rows})}."
    )


def against(baseline: Group, rows: Sequence[Group], metric: str, same: SameRows) -> list[Compared]:
    """Each of the other ``rows`` with runs, compared to the baseline."""
    rest = [group for group in rows if group is not baseline and group.runs]
    return list(map(Compared, rest, comparisons_with(baseline, rest, metric, same)))


def require_a_pair(name: str, baseline: Group, compared: Sequence[Compared], same: SameRows) -> None:
    """Raise ConfigError if ``--baseline name`` asks for what no row can be paired with."""
    if not compared:
        return
    if all(one.test.why_not == same.why_not for one in compared):
        raise ConfigError(
            f"--baseline {name}: no row can be compared with it: all others are {same.why_not}. Choose a "
            "baseline on the same texts (What it was measured on, in the report without --baseline, names them)."
        )
    if all(one.test.n == 0 for one in compared):
        seeds = sorted({run.seed for run in baseline.runs})
        others = sorted({run.seed for one in compared for run in one.group.runs})
        raise ConfigError(
            f"--baseline {name}: no row can be paired with it: {compared[0].test.why_not}. "
            f"Its seeds are {seeds}; those of the other rows are {others}. A paired test needs one run a seed in both."
        )
