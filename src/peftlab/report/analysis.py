"""What the runs say, as numbers: groups, means, marks and comparisons. Words and tables are made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import hypot

from peftlab.metric_names import MetricName
from peftlab.objectives.base import figure_called
from peftlab.report.columns import Column
from peftlab.report.groups import Group, Grouped, with_one_id_each
from peftlab.report.marks import Marks, marks_of
from peftlab.report.records import Run
from peftlab.report.same_rows import SameRows, same_rows
from peftlab.report.statistics import Comparison, Summary, binomial_error, summarise
from peftlab.report.table import Mark


@dataclass(frozen=True)
class Analysis:
    """Everything that is known of the runs."""

    metric: Column
    curve: str
    """The quantity of the history that goes with the metric."""
    highest: bool
    """Whether the highest value of the metric is the best."""
    columns: Sequence[Column]
    rows: Sequence[Group]
    others: Sequence[Group]
    """What a sweep has beside its rows."""
    grouped: Grouped
    summaries: Mapping[str, Summary]
    """Id of a row → its metric."""
    same: SameRows
    """Which runs were measured on the same texts."""
    marked: Marks
    """The best rows, and what could not be compared with them."""
    baseline: Group | None = None
    comparisons: Mapping[str, Comparison] = field(default_factory=dict)
    """Id of a row → how it compares to the baseline."""

    @property
    def marks(self) -> Mapping[str, Mark]:
        """Id of a row → its mark; see :attr:`Marks.of`."""
        return self.marked.of

    @property
    def runs(self) -> list[Run]:
        """All finished runs of the rows and of the others."""
        return [run for group in [*self.rows, *self.others] for run in group.runs]

    @property
    def curve_in_percent(self) -> bool:
        """Whether the curve is written as the metric is, in percent: where the two are of one figure."""
        metric, curve = MetricName.from_record(self.metric.value), MetricName.from_history(self.curve)
        alike = metric is not None and curve is not None and metric.figure == curve.figure
        return alike and self.metric.format == "percent"

    def sampling_error(self, group: Group) -> float | None:
        """Binomial standard error of the mean share of right rows on the group's number of test (or validation) rows.

        None where the metric is no share of rows, or their number is not one.
        """
        name, summary = MetricName.from_record(self.metric.value), self.summaries[group.id]
        figure = figure_called(name.figure) if name is not None and name.split != "train" else None
        if name is None or figure is None or not figure.share_of_rows:
            return None
        counts = {run.facts[f"{name.split} rows"] for run in group.runs}
        if summary.finite_mean is None or len(counts) != 1 or not (rows := counts.pop()).isdigit() or not int(rows):
            return None
        return binomial_error(summary.finite_mean, int(rows))

    def within_sampling(self, group: Group) -> bool:
        """Whether other test rows alone might give the distance by which ``group`` is worse than the best.

        That is within 1.96 standard errors of a difference of shares on independent rows; on the same rows, whose
        answers go together, it errs on the safe side.
        """
        own, distance = self.sampling_error(group), self.marked.differences.get(group.id)
        of_best = self._sampling_error_of_best.get((group.section, self.same.of(group)))
        if own is None or distance is None or of_best is None:
            return False
        return distance < 1.96 * hypot(own, of_best)

    @cached_property
    def _sampling_error_of_best(self) -> dict[tuple[str, tuple[str, ...]], float | None]:
        """By section and test set."""
        errors: dict[tuple[str, tuple[str, ...]], float | None] = {}
        for one in self.rows:
            if self.marks.get(one.id) == "best":
                errors.setdefault((one.section, self.same.of(one)), self.sampling_error(one))
        return errors

    def best_first(self, groups: Sequence[Group]) -> list[Group]:
        """``groups`` with a finite metric, the best mean first."""
        means = {group.id: mean for group in groups if (mean := self.summaries[group.id].finite_mean) is not None}
        usable = [group for group in groups if group.id in means]
        return sorted(usable, key=lambda group: means[group.id], reverse=self.highest)


def analyse(grouped: Grouped, metric: Column, columns: Sequence[Column], curve: str, *, highest: bool) -> Analysis:
    """Summarise the groups that are rows, and mark the best; without a baseline."""
    rows = with_one_id_each([group for group in grouped.groups if group.row])
    same = same_rows(grouped.groups, metric.value)
    summaries = {group.id: summarise(group.values(metric.value)) for group in rows}
    return Analysis(
        metric=metric, curve=curve, highest=highest, columns=tuple(columns), rows=tuple(rows),
        others=tuple(group for group in grouped.groups if not group.row), grouped=grouped, summaries=summaries,
        same=same, marked=marks_of(rows, metric, summaries, same, highest=highest),
    )  # fmt: skip
