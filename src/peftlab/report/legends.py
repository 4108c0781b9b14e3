"""What the marks and columns of a report's tables mean, and what could not be tested."""

from __future__ import annotations

from typing import NamedTuple

from peftlab.report.analysis import Analysis
from peftlab.report.groups import Group
from peftlab.report.statistics import LEVEL, RESAMPLES
from peftlab.report.words import counted, names


class MarkWords(NamedTuple):
    """How the marks look where the legend stands."""

    best: str
    tied: str


TYPESET = MarkWords("Bold", "Underlined")
PLAIN = MarkWords("*", "=")
"""For output that has neither bold nor underlined letters."""


def legend(analysis: Analysis, words: MarkWords = TYPESET) -> str:
    """What ± and the marks mean, and which rows could not be tested, in one line."""
    best = "highest" if analysis.highest else "lowest"
    parts = ["Mean ± standard deviation (n - 1) over seeds."]
    if analysis.marks:
        places = {(group.section, analysis.same.of(group)) for group in analysis.rows if group.runs}
        where = " of the rows" if len(places) == 1 else " of each section and of each test set"
        parts.append(f"{words.best}: the best mean{where} ({best} {analysis.metric.title}).")
        parts += _about_tests(analysis, words)
    elif len(analysis.rows) > 1:
        parts.append("No row is marked as the best: no two that may be compared have a finite mean.")
    parts += [*_about_untested(analysis), *_about_sampling(analysis)]
    return " ".join(parts)


def _about_tests(analysis: Analysis, words: MarkWords) -> list[str]:
    tested = [count for count in analysis.marked.tested if count]
    if not tested:
        return []
    over = f"the {tested[0]} rows" if len(tested) == 1 else (
        f"the rows of each ({', '.join(map(str, tested))}), which share the level"
    )  # fmt: skip
    test = (
        f"Dunnett's procedure C over all pairs of {over} (unequal variances, seeds not paired), which calls a row of "
        f"the table worse that is not with a chance of at most {LEVEL:g}"
    )
    if "tied" in analysis.marks.values():
        return [
            f"{words.tied}: not significantly different from the best by {test}; with few seeds, that alone is no "
            "proof that they are equal."
        ]
    worse = sum(tested) - len(tested)
    passes = f"Of {worse} rows tested against the best none passes"
    if worse == 1:
        passes = "The one row that was tested against the best does not pass"
    return [f"{passes} as equal: {words.tied.lower()} would be what {test} cannot tell from the best."]


def _about_sampling(analysis: Analysis) -> list[str]:
    """What more seeds cannot lower: the error of means over seeds that the number of test rows makes."""
    several = [group for group in analysis.rows if analysis.summaries[group.id].n > 1]
    errors = [error for group in several if (error := analysis.sampling_error(group))]
    if not errors:
        return []
    low, high = f"{min(errors):.4f}", f"{max(errors):.4f}"
    said = (
        f"± and tests speak of training again, not of other {analysis.same.split} rows: from their number alone each "
        f"mean has a standard error of {low if low == high else f'{low} to {high}'} (binomial), however many seeds."
    )
    if within := [group for group in several if analysis.within_sampling(group)]:
        said += f" That alone might explain the distance from the best of: {names(within)}."
    return [said]


def _about_untested(analysis: Analysis) -> list[str]:
    """Rows without a mark that no test stands behind, by the reason."""
    by_reason: dict[str, list[Group]] = {}
    for group in analysis.rows:
        if why := analysis.marked.untested.get(group.id):
            by_reason.setdefault(why, []).append(group)
    if not by_reason:
        return []
    said = "; ".join(f"{why} ({names(groups)})" for why, groups in by_reason.items())
    return [f"Not tested against the best: {said}."]


def comparison_legend(analysis: Analysis) -> str:
    """What the columns of the comparison are, in one line."""
    tested = sum(test.p is not None for test in analysis.comparisons.values())
    over = f"corrected by Bonferroni over the {counted(tested, 'comparison')} that could be tested"
    if tested < len(analysis.comparisons):
        over += f", of {len(analysis.comparisons)}"
    if not tested:
        over = "which no row could have"
    return (
        f"Difference: mean over shared seeds of (row - {analysis.baseline.label if analysis.baseline else ''}) in "
        f"{analysis.metric.title}. p: two-sided paired t-test, {over}. "
        f"Intervals are corrected like p, so that all of a table cover with 95 %: that of the t distribution, and the "
        f"percentile bootstrap of the mean difference ({RESAMPLES:,} resamples, seed 0), which is too narrow with few "
        "seeds."
    )
