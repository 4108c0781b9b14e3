"""Which rows of a table are the best, which cannot be told from them, and which could not be tested at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from peftlab.report.best import AgainstBest, against_best
from peftlab.report.columns import Column, mean_text
from peftlab.report.groups import Group
from peftlab.report.same_rows import SameRows
from peftlab.report.statistics import LEVEL, Summary, summarise
from peftlab.report.table import Mark


@dataclass(frozen=True)
class Marks:
    """What was found beside the means."""

    of: Mapping[str, Mark] = field(default_factory=dict)
    """Id of a row → ``best``: no row shows a better mean, and one a worse one; or ``tied``: not significantly worse
    than the best."""
    alike: Sequence[Group] = ()
    """Rows without a mark since all that they may be compared with show the same mean."""
    untested: Mapping[str, str] = field(default_factory=dict)
    """Id of a row that could not be compared with the best → why."""
    tested: Sequence[int] = ()
    """How many rows were tested against each other, the best among them, in each set of rows that may be compared."""
    differences: Mapping[str, float] = field(default_factory=dict)
    """Id of a row that is significantly worse than the best → by how much."""


def marks_of(
    rows: Sequence[Group], metric: Column, summaries: Mapping[str, Summary], same: SameRows, *, highest: bool
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
    metric = metric.with_digits_of(group.values(metric.value) for group in rows)  # as the table shows it
    found = [_of_one_kind(usable, metric, same, LEVEL / len(comparable), highest=highest) for usable in comparable]
    return Marks(
        {name: mark for one in found for name, mark in one.of.items()},
        alike=[group for one in found for group in one.alike],
        untested=untested | {name: why for one in found for name, why in one.untested.items()},
        tested=[count for one in found for count in one.tested],
        differences={name: by for one in found for name, by in one.differences.items()},
    )


def _of_one_kind(usable: Sequence[Group], metric: Column, same: SameRows, level: float, *, highest: bool) -> Marks:
    means = {group.id: summarise(group.values(metric.value)).finite_mean or 0.0 for group in usable}
    in_order = sorted(means.items(), key=lambda item: item[1], reverse=highest)
    top, shown = in_order[0][1], mean_text(in_order[0][1], metric)
    if mean_text(in_order[-1][1], metric) == shown:
        return Marks(alike=usable)
    best = max((group for group in usable if means[group.id] == top), key=lambda group: len(group.runs))
    tests = _tests(best, [group for group in usable if group is not best], metric.value, same, level)
    marks: dict[str, Mark] = {name: "tied" for name, test in tests.items() if test.worse is False}
    marks |= {name: "best" for name, _ in takewhile(lambda item: mean_text(item[1], metric) == shown, in_order)}
    tested = sum(test.worse is not None for test in tests.values())
    return Marks(
        marks,
        untested={name: test.why_not for name, test in tests.items() if test.worse is None and name not in marks},
        tested=[tested and tested + 1],
        differences={name: abs(test.difference) for name, test in tests.items() if test.worse and name not in marks},
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
