"""All figures of a report. One that makes no sense for its records is left out, with the reason."""

from __future__ import annotations

from collections.abc import Callable

from peftlab.report.analysis import Analysis
from peftlab.report.figures.heat import draw_heat
from peftlab.report.figures.runs import draw_curves, draw_seeds
from peftlab.report.figures.scatter import draw_costs, draw_parameters
from peftlab.report.figures.style import Drawn, Gallery
from peftlab.report.forks import cpus, map_in_forks

DRAWINGS: tuple[Callable[[Analysis], Drawn | str], ...] = (
    draw_parameters, draw_heat, draw_curves, draw_seeds, draw_costs,
)  # fmt: skip
MANY_ROWS = 500
"""Rows from which on a figure takes seconds, and several are drawn at a time."""


def draw_all(report: Analysis) -> Gallery:
    """Draw what makes sense for ``report``."""
    if cpus() > 1 and len(report.rows) >= MANY_ROWS:
        results = _side_by_side(report)
    else:
        results = [draw(report) for draw in DRAWINGS]
    absent = [f"{found}." for found in results if isinstance(found, str)]
    return Gallery([found for found in results if not isinstance(found, str)], absent)


def _side_by_side(report: Analysis) -> list[Drawn | str]:
    import matplotlib.backends.backend_agg
    import matplotlib.backends.backend_pdf
    import matplotlib.figure  # noqa: F401  imported once, for all forks

    global _report
    _report = report  # the forks find it here: sending thousands of runs to each would take longer than drawing
    try:
        return map_in_forks(_draw, range(len(DRAWINGS)))
    finally:
        _report = None


_report: Analysis | None = None


def _draw(number: int) -> Drawn | str:
    assert _report is not None
    return DRAWINGS[number](_report)
