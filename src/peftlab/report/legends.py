"""What the marks and columns of a report's tables mean, and what could not be tested."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from peftlab.report.groups import Group
from peftlab.report.statistics import LEVEL, RESAMPLES

if TYPE_CHECKING:
    from peftlab.report.build import Report

SHOWN_NAMES = 5


class MarkWords(NamedTuple):
    """How the marks look where the legend stands."""

    best: str
    tied: str


TYPESET = MarkWords("Bold", "Underlined")
PLAIN = MarkWords("*", "=")
"""For output that has neither bold nor underlined letters."""


def legend(report: Report, words: MarkWords = TYPESET) -> str:
    """What ± and the marks mean, and which rows could not be tested, in one line."""
    best = "highest" if report.highest else "lowest"
    parts = ["Mean ± standard deviation (n - 1) over seeds."]
    if report.marks:
        places = {(group.section, report.same.of(group)) for group in report.rows if group.runs}
        where = " of the rows" if len(places) == 1 else " of each section and of each test set"
        parts.append(f"{words.best}: the best mean{where} ({best} {report.metric.title}).")
        parts += _about_tests(report, words)
    elif len(report.rows) > 1:
        parts.append("No row is marked as the best: no two that may be compared have a finite mean.")
    parts += _about_untested(report)
    return " ".join(parts)


def _about_tests(report: Report, words: MarkWords) -> list[str]:
    tests = report.found.tests
    if not any(tests):
        return []
    over = f"over {counted(sum(tests), 'comparison')}" if len(tests) == 1 else (
        f"over the comparisons of each ({', '.join(map(str, tests))})"
    )  # fmt: skip
    test = f"a paired t-test over shared seeds with Holm's correction {over} at {LEVEL:g}"
    if "tied" in report.marks.values():
        return [
            f"{words.tied}: not significantly different from the best by {test}; with few seeds, that alone is no "
            "proof that they are equal."
        ]
    passes = f"Of {sum(tests)} rows tested none passes"
    if sum(tests) == 1:
        passes = "The one row that was tested does not pass"
    return [f"{passes} as equal: {words.tied.lower()} would be what {test} cannot tell from the best."]


def _about_untested(report: Report) -> list[str]:
    """Rows without a mark that no test stands behind, by the reason."""
    by_reason: dict[str, list[Group]] = {}
    for group in report.rows:
        if why := report.found.untested.get(group.id):
            by_reason.setdefault(why, []).append(group)
    if not by_reason:
        return []
    said = "; ".join(f"{why} ({names(groups)})" for why, groups in by_reason.items())
    return [f"Not tested against the best: {said}."]


def comparison_legend(report: Report) -> str:
    """What the columns of the comparison are, in one line."""
    compared = report.comparisons.values()
    tested = sum(found.p is not None for found in compared)
    over = f"Holm's correction is over the {counted(tested, 'comparison')} that could be tested"
    if tested < len(compared):
        over += f", of {len(compared)}"
    if not tested:
        over = "no row could be tested"
    return (
        f"Difference: mean over shared seeds of (row - {report.baseline.label if report.baseline else ''}) in "
        f"{report.metric.title}. p: two-sided paired t-test; {over}. "
        f"Intervals cover 95 %: that of the t distribution, and the percentile bootstrap of the mean difference "
        f"({RESAMPLES:,} resamples, seed 0), which is too narrow with few seeds."
    )


def counted(count: int, what: str) -> str:
    """``1 run``, ``2 runs``."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def names(groups: Iterable[Group]) -> str:
    """Labels of the first few groups, and how many there are beyond."""
    labels = [group.label for group in groups]
    more = f" and {len(labels) - SHOWN_NAMES} more" if len(labels) > SHOWN_NAMES else ""
    return "; ".join(labels[:SHOWN_NAMES]) + more
