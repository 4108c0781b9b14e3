"""All figures of a report. One that makes no sense for its records is left out, with the reason."""

from __future__ import annotations

from collections.abc import Callable

from peftlab.report.build import Report
from peftlab.report.figures_heat import draw_heat
from peftlab.report.figures_runs import draw_curves, draw_seeds
from peftlab.report.figures_scatter import draw_costs, draw_parameters
from peftlab.report.figures_style import Drawn, Gallery
from peftlab.report.forks import cpus, map_in_forks

DRAWINGS: tuple[Callable[[Report], Drawn | str], ...] = (
    draw_parameters, draw_heat, draw_curves, draw_seeds, draw_costs,
)  # fmt: skip
MANY_ROWS = 500
"""Rows from which on a figure takes seconds, and several are drawn at a time."""


def draw_all(report: Report) -> Gallery:
    """Draw what makes sense for ``report``."""
    if cpus() > 1 and len(report.rows) >= MANY_ROWS:
        results = _side_by_side(report)
    else:
        results = [draw(report) for draw in DRAWINGS]
    gallery = Gallery()
    for drawn in results:
        if isinstance(drawn, str):
            gallery.absent.append(f"{drawn}.")
        else:
            gallery.drawn.append(drawn)
    return gallery


def _side_by_side(report: Report) -> list[Drawn | str]:
    import matplotlib.backends.backend_agg
    import matplotlib.backends.backend_pdf
    import matplotlib.figure  # noqa: F401  imported once, for all forks

    global _report
    _report = report  # the forks find it here: sending thousands of runs to each would take longer than drawing
    try:
        return map_in_forks(_draw, range(len(DRAWINGS)))
    finally:
        _report = None


_report: Report | None = None


def _draw(number: int) -> Drawn | str:
    assert _report is not None
    return DRAWINGS[number](_report)
