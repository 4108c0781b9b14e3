"""Rows against one other row: a paired test each, over the seeds that both have and on the same texts only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from peftlab.errors import ConfigError, listed, nearest
from peftlab.report.groups import Group
from peftlab.report.same_rows import SameRows
from peftlab.report.statistics import Comparison, compare


def comparisons_with(other: Group, groups: Sequence[Group], metric: str, same: SameRows) -> list[Comparison]:
    """How each of ``groups`` compares to ``other``, corrected for the number of those that can be tested."""

    def compared(family: int, *, bootstrap: bool) -> list[Comparison]:
        return [
            compare(group.by_seed(metric), values, family=family, bootstrap=bootstrap)
            if same.pairable(group, other)
            else Comparison(0, why_not=same.why_not)
            for group in groups
        ]

    values = other.by_seed(metric)
    tested = sum(one.p is not None for one in compared(1, bootstrap=False))
    return compared(max(tested, 1), bootstrap=True)


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


def against(baseline: Group, rows: Sequence[Group], metric: str, same: SameRows) -> dict[str, Comparison]:
    """Id of each of the other ``rows`` that has runs → how it compares to the baseline."""
    rest = [group for group in rows if group is not baseline and group.runs]
    tests = comparisons_with(baseline, rest, metric, same)
    return {group.id: test for group, test in zip(rest, tests, strict=True)}


def require_a_pair(
    name: str, baseline: Group, rows: Sequence[Group], tests: Mapping[str, Comparison], same: SameRows
) -> None:
    """Raise ConfigError if ``--baseline name`` asks for what no row can be paired with."""
    if not tests:
        return
    if all(test.why_not == same.why_not for test in tests.values()):
        raise ConfigError(
            f"--baseline {name}: no row can be compared with it: all others are {same.why_not}. Choose a "
            "baseline on the same texts (What it was measured on, in the report without --baseline, names them)."
        )
    if all(test.n == 0 for test in tests.values()):
        seeds = sorted({run.seed for run in baseline.runs})
        others = sorted({run.seed for group in rows if group.id in tests for run in group.runs})
        raise ConfigError(
            f"--baseline {name}: no row can be paired with it: {next(iter(tests.values())).why_not}. "
            f"Its seeds are {seeds}; those of the other rows are {others}. A paired test needs one run a seed in both."
        )
