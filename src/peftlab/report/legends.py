"""What the marks and columns of a report's tables mean, and what could not be tested."""

from __future__ import annotations

from typing import NamedTuple

from peftlab.report.analysis import Analysis
from peftlab.report.columns import TRAINABLE, TRAINABLE_WITHOUT_HEAD
from peftlab.report.groups import Group
from peftlab.report.number_text import WITHOUT_DEVIATION
from peftlab.report.statistics import LEVEL, RESAMPLES
from peftlab.report.words import counted, names, runs_of_each, with_the_head


class MarkWords(NamedTuple):
    """How the marks look where the legend stands."""

    best: str
    tied: str


TYPESET = MarkWords("Bold", "Underlined")
PLAIN = MarkWords("*", "=")
"""For output that has neither bold nor underlined letters."""


def caption(analysis: Analysis) -> str:
    """What the cells of the results are, in a sentence."""
    several = runs_of_each(analysis.rows)
    if several is None:
        units = {group.unit for group in analysis.rows}
        return f"Mean ± standard deviation (n − 1) over the n {units.pop() if len(units) == 1 else 'runs'} of a row."
    count, unit = several
    if count == 1:
        return f"Values of one {unit.removesuffix('s')} each."
    return f"Mean ± standard deviation (n − 1) over {count} {unit}."


def without_deviation(analysis: Analysis) -> str:
    """Which columns are means alone, in a sentence; empty if none is, or nothing has a deviation."""
    titles = [one.title for one in analysis.columns if not one.deviates and one.format not in WITHOUT_DEVIATION]
    if not titles or all(len(group.runs) < 2 for group in analysis.rows):
        return ""
    return f"Means without a deviation: {'; '.join(titles)}."


def with_head(analysis: Analysis) -> str:
    """Which column counts the head beside what the method trains, in a sentence; empty if none does."""
    title = next((column.title for column in analysis.columns if column.value == TRAINABLE), None)
    if title is None:
        return ""
    pairs = [(run.number(TRAINABLE), run.number(TRAINABLE_WITHOUT_HEAD)) for row in analysis.rows for run in row.runs]
    return with_the_head(title, (all_ - alone for all_, alone in pairs if all_ is not None and alone is not None))


def legend(analysis: Analysis, words: MarkWords = TYPESET) -> list[str]:
    """What the marks mean, which rows could not be tested, and what the number of test rows leaves open."""
    best = "highest" if analysis.highest else "lowest"
    marks: list[str] = []
    one_place = len({(group.section, analysis.same.of(group)) for group in analysis.rows if group.runs}) == 1
    if analysis.marks:
        where = " of the rows" if one_place else " of each section and of each test set"
        marks.append(f"{words.best}: the best mean{where} ({best} {analysis.metric.title}).")
        marks += _about_tests(analysis, words)
    elif len(analysis.rows) > 1 and not analysis.marked.alike:
        marks.append("No row is marked as the best: no two that may be compared have a finite mean.")
    if alike := analysis.marked.alike:
        marks.append(
            "No row is marked as the best: all show the same mean." if len(alike) == len(analysis.rows) and one_place
            else f"Where all rows show the same mean, none is marked as the best: {names(alike)}."
        )  # fmt: skip
    columns = " ".join(filter(None, [without_deviation(analysis), with_head(analysis)]))
    said = [columns, " ".join([*marks, *_about_untested(analysis)]), *_about_sampling(analysis)]
    return list(filter(None, said))


def _about_tests(analysis: Analysis, words: MarkWords) -> list[str]:
    tested = [count for count in analysis.marked.tested if count]
    if not tested:
        return []
    over = f"the {tested[0]} rows" if len(tested) == 1 else (
        f"the rows of each ({', '.join(map(str, tested))}), which share the error rate"
    )  # fmt: skip
    test = (
        f"Dunnett's procedure C over all pairs of {over}: unequal variances, seeds not paired, family-wise error rate "
        f"{LEVEL:g}"
    )
    if "tied" in analysis.marks.values():
        return [
            f"{words.tied}: not significantly different from the best ({test}); with few seeds, that is no proof "
            "that they are equal."
        ]
    worse = sum(tested) - len(tested)
    which = "The other row that was tested is" if worse == 1 else f"All {worse} other rows that were tested are"
    return [f"{which} significantly worse ({test})."]


def _about_sampling(analysis: Analysis) -> list[str]:
    """What more seeds cannot lower: the error of means over seeds that the number of test rows makes."""
    several = [group for group in analysis.rows if analysis.summaries[group.id].n > 1]
    errors = [error for group in several if (error := analysis.sampling_error(group))]
    if not errors:
        return []
    said = (
        f"± and tests are about training again, with the same {analysis.same.split} rows. The number of these rows "
        f"alone gives each mean a standard error of {analysis.metric.errors_in_words(errors)} (binomial), however many "
        "seeds there are."
    )
    if within := [group for group in several if analysis.within_sampling(group)]:
        said += f" That alone might explain how far these are from the best: {names(within)}."
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


def comparison_caption(analysis: Analysis) -> str:
    """What the differences of the comparison are, in a sentence."""
    unit = " (percentage points)" if analysis.metric.format == "percent" else ""
    shared = shared_seeds(analysis)
    seeds = "shared seeds" if shared is None else counted(shared, "shared seed")
    return f"Mean difference in {analysis.metric.title}{unit} over {seeds}."


def shared_seeds(analysis: Analysis) -> int | None:
    """How many seeds each row shares with the baseline; None if that differs, or is none."""
    found = {test.n for test in analysis.comparisons.values()}
    return (found.pop() or None) if len(found) == 1 else None


def comparison_legend(analysis: Analysis) -> list[str]:
    """What p and intervals of the comparison are."""
    tested = sum(test.p is not None for test in analysis.comparisons.values())
    over = f"corrected by Bonferroni over the {counted(tested, 'comparison')} that could be tested"
    if tested < len(analysis.comparisons):
        over += f", of {len(analysis.comparisons)}"
    if not tested:
        over = "which no row could have"
    baseline = analysis.baseline.label if analysis.baseline else ""
    return [
        f"Difference: row − {baseline}. p: two-sided paired t-test, {over}. Intervals are corrected like p, so that "
        "all of a table cover with 95 %: that of the t distribution, and the percentile bootstrap of the mean "
        f"difference ({RESAMPLES:,} resamples, seed 0), which is too narrow with few seeds."
    ]
