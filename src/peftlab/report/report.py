"""A report: everything that its outputs show, decided. ``build`` makes one of records, ``render`` shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from peftlab.report.analysis import Analysis
from peftlab.report.failures import Failure
from peftlab.report.records_find import LeftOut
from peftlab.report.results import Details
from peftlab.report.table import Table


@dataclass(frozen=True, kw_only=True)
class Report(Analysis):
    """An analysis, and the tables and words that are made of it."""

    title: str
    results: Table
    comparison: Table | None
    """With the baseline, if there is one."""
    name: str
    """Of the sweep, or of the runs: what outputs that need a short name call it."""
    with_head: str
    """Which column of ``results`` counts the head too, as its notes say it; empty if none does."""
    legend_in_signs: tuple[str, ...]
    """The notes of ``results`` for outputs that have neither bold nor underlined letters."""
    details: Mapping[str, Details]
    """Id of a row → what is said of it beside its cells."""
    filter_names: tuple[str, ...]
    """Keys that rows can be filtered by, as short as they can be said."""
    filter_example: str
    measured_on: tuple[str, ...]
    selection: tuple[str, ...]
    """How weights were chosen."""
    source: tuple[str, ...]
    """The paper, in a sentence, if there is one."""
    notes: tuple[str, ...]
    failures: tuple[Failure, ...]
    left_out: tuple[LeftOut, ...]

    @property
    def left_out_lines(self) -> list[str]:
        """A line for each file that could not be used."""
        return [f"{one.path} {one.reason}." for one in self.left_out]
