"""Which rows of a table are the best, which cannot be told from them, and which could not be tested at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from peftlab.report.groups import Group
from peftlab.report.pairing import comparisons_with
from peftlab.report.same_rows import SameRows
from peftlab.report.statistics import Summary
from peftlab.report.table import Mark


@dataclass(frozen=True)
class Marks:
    """What was found beside the means."""

    of: Mapping[str, Mark] = field(default_factory=dict)
    """Id of a row → ``best``, or ``tied``: not significantly worse than the best."""
    untested: Mapping[str, str] = field(default_factory=dict)
    """Id of a row that could not be compared with the best → why."""
    tests: Sequence[int] = ()
    """How many comparisons Holm's correction is over, for each set of rows that may be compared."""


def marks_of(
    rows: Sequence[Group], metric: str, summaries: Mapping[str, Summary], same: SameRows, *, highest: bool
) -> Marks:
    """The best of the rows that may be compared, and those that the corrected paired test cannot tell from it."""
    kinds: dict[tuple[str, tuple[str, ...]], list[Group]] = {}
    for group in rows:
        if group.runs:
            kinds.setdefault((group.section, same.of(group)), []).append(group)
    marks: dict[str, Mark] = {}
    untested: dict[str, str] = {}
    tests: list[int] = []
    for members in kinds.values():
        untested |= {
            group.id: "a value is not finite" if summaries[group.id].n else "no value"
            for group in members
            if not summaries[group.id].finite
        }
        means = {group.id: mean for group in members if (mean := summaries[group.id].finite_mean) is not None}
        usable = [group for group in members if group.id in means]
        if len(usable) < 2:
            untested |= {group.id: "no other row to compare it with" for group in usable}
            continue
        found = _of_one_kind(usable, metric, means, same, highest=highest)
        marks |= found.of
        untested |= found.untested
        tests += found.tests
    return Marks(marks, untested, tests)


def _of_one_kind(
    usable: Sequence[Group], metric: str, means: Mapping[str, float], same: SameRows, *, highest: bool
) -> Marks:
    top = (max if highest else min)(means.values())
    best = [group for group in usable if means[group.id] == top]
    rest = [group for group in usable if means[group.id] != top]
    tests = comparisons_with(best[0], rest, metric, same, bootstrap=False)
    marks: dict[str, Mark] = {group.id: "best" for group in best}
    marks |= {group.id: "tied" for group, test in zip(rest, tests, strict=True) if test.significant is False}
    untested = {group.id: test.why_not for group, test in zip(rest, tests, strict=True) if test.p is None}
    return Marks(marks, untested, [sum(test.p is not None for test in tests)])
