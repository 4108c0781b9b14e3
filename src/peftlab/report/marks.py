"""Which rows of a table are the best, which cannot be told from them, and which could not be tested at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from peftlab.report.best import AgainstBest, against_best
from peftlab.report.groups import Group
from peftlab.report.same_rows import SameRows
from peftlab.report.statistics import LEVEL, Summary, summarise
from peftlab.report.table import Mark


@dataclass(frozen=True)
class Marks:
    """What was found beside the means."""

    of: Mapping[str, Mark] = field(default_factory=dict)
    """Id of a row → ``best``, or ``tied``: not significantly worse than the best."""
    untested: Mapping[str, str] = field(default_factory=dict)
    """Id of a row that could not be compared with the best → why."""
    tested: Sequence[int] = ()
    """How many rows were tested against each other, the best among them, in each set of rows that may be compared."""
    differences: Mapping[str, float] = field(default_factory=dict)
    """Id of a row that is significantly worse than the best → by how much."""


def marks_of(
    rows: Sequence[Group], metric: str, summaries: Mapping[str, Summary], same: SameRows, *, highest: bool
) -> Marks:
    """The best of the rows that may be compared, and those that cannot be told from it.

    Rows are compared within their section and test set; the sets share the family-wise error rate: in at most 5 %
    of tables a row is called worse although it is not.
    """
    kinds: dict[tuple[str, tuple[str, ...]], list[Group]] = {}
    for group in rows:
        if group.runs:
            kinds.setdefault((group.section, same.of(group)), []).append(group)
    untested: dict[str, str] = {}
    comparable: list[list[Group]] = []
    for members in kinds.values():
        untested |= {
            group.id: "a value is not finite" if summaries[group.id].n else "no value"
            for group in members
            if not summaries[group.id].finite
        }
        usable = [group for group in members if summaries[group.id].finite]
        if len(usable) < 2:
            untested |= {group.id: "no other row to compare it with" for group in usable}
        else:
            comparable.append(usable)
    found = [_of_one_kind(usable, metric, same, LEVEL / len(comparable), highest=highest) for usable in comparable]
    return Marks(
        {name: mark for one in found for name, mark in one.of.items()},
        untested | {name: why for one in found for name, why in one.untested.items()},
        [count for one in found for count in one.tested],
        {name: by for one in found for name, by in one.differences.items()},
    )


def _of_one_kind(usable: Sequence[Group], metric: str, same: SameRows, level: float, *, highest: bool) -> Marks:
    means = {group.id: summarise(group.values(metric)).finite_mean or 0.0 for group in usable}
    top = (max if highest else min)(means.values())
    best = max((group for group in usable if means[group.id] == top), key=lambda group: len(group.runs))
    tests = _tests(best, [group for group in usable if group is not best], metric, same, level)
    marks: dict[str, Mark] = {name: "tied" for name, test in tests.items() if test.worse is False}
    marks |= {name: "best" for name, mean in means.items() if mean == top}
    tested = sum(test.worse is not None for test in tests.values())
    return Marks(
        marks,
        {name: test.why_not for name, test in tests.items() if test.worse is None and name not in marks},
        [tested and tested + 1],
        {name: abs(test.difference) for name, test in tests.items() if test.worse},
    )


def _tests(best: Group, rest: Sequence[Group], metric: str, same: SameRows, level: float) -> dict[str, AgainstBest]:
    """Id of each row of ``rest`` → how it compares with ``best``."""
    reasons = {group.id: _why_not(group, best, metric, same) for group in rest}
    able = [group for group in rest if not reasons[group.id]]
    found = against_best(best.values(metric), [group.values(metric) for group in able], level=level)
    tests = {group.id: test for group, test in zip(able, found, strict=True)}
    return {name: tests.get(name) or AgainstBest(0.0, why_not=why) for name, why in reasons.items()}


def _why_not(group: Group, best: Group, metric: str, same: SameRows) -> str:
    """Why the two cannot be compared; empty if they can."""
    if not same.pairable(group, best):
        return same.why_not
    twice = next((one for one in (group, best) if one.by_seed(metric) is None), None)
    return "" if twice is None else "several runs of one seed"
