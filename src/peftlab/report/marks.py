"""Which rows of a table are the best, which cannot be told from them, and which could not be tested at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from peftlab.report.groups import Group
from peftlab.report.same_rows import SameRows
from peftlab.report.statistics import Comparison, Summary, compare, corrected


@dataclass
class Marks:
    """What was found beside the means."""

    of: dict[str, str] = field(default_factory=dict)
    """Id of a row → ``best``, or ``tied``: not significantly worse than the best."""
    untested: dict[str, str] = field(default_factory=dict)
    """Id of a row that could not be compared with the best → why."""
    tests: list[int] = field(default_factory=list)
    """How many comparisons Holm's correction is over, for each set of rows that may be compared."""


def marks_of(
    rows: Sequence[Group], metric: str, summaries: Mapping[str, Summary], same: SameRows, *, highest: bool
) -> Marks:
    """The best of the rows that may be compared, and those that the corrected paired test cannot tell from it."""
    found = Marks()
    kinds: dict[tuple[str, tuple[str, ...]], list[Group]] = {}
    for group in rows:
        if group.runs:
            kinds.setdefault((group.section, same.of(group)), []).append(group)
    for members in kinds.values():
        usable = [group for group in members if summaries[group.id].finite]
        found.untested |= {
            group.id: "a value is not finite" if summaries[group.id].n else "no value"
            for group in members
            if not summaries[group.id].finite
        }
        if len(usable) < 2:
            found.untested |= {group.id: "no other row to compare it with" for group in usable}
            continue
        _mark(found, usable, metric, {group.id: summaries[group.id].mean or 0.0 for group in usable}, same, highest)
    return found


def _mark(
    found: Marks, usable: Sequence[Group], metric: str, means: Mapping[str, float], same: SameRows, highest: bool
) -> None:
    top = (max if highest else min)(means.values())
    best = next(group for group in usable if means[group.id] == top)
    rest = [group for group in usable if means[group.id] != top]
    values = best.by_seed(metric)
    tests = corrected(
        [
            compare(group.by_seed(metric), values, bootstrap=False)
            if same.pairable(group, best)
            else Comparison(0, why_not=same.why_not)
            for group in rest
        ]
    )
    found.of |= {group.id: "best" for group in usable if means[group.id] == top}
    found.of |= {group.id: "tied" for group, test in zip(rest, tests, strict=True) if test.significant is False}
    found.untested |= {group.id: test.why_not for group, test in zip(rest, tests, strict=True) if test.p is None}
    found.tests.append(sum(test.p is not None for test in tests))
