"""All figures of a report. One that makes no sense for its records is left out, with the reason."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

from peftlab.report.build import Report
from peftlab.report.figures_heat import draw_heat
from peftlab.report.figures_runs import draw_curves, draw_seeds
from peftlab.report.figures_scatter import draw_costs, draw_parameters
from peftlab.report.figures_style import Drawn, Gallery

DRAWINGS: tuple[Callable[[Report], Drawn | str], ...] = (
    draw_parameters, draw_heat, draw_curves, draw_seeds, draw_costs,
)  # fmt: skip
MANY_ROWS = 500
"""Rows from which on a figure takes seconds, and several are drawn at a time."""


def draw_all(report: Report) -> Gallery:
    """Draw what makes sense for ``report``."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    if cpus > 1 and len(report.rows) >= MANY_ROWS:
        results = _side_by_side(report, cpus)
    else:
        results = [draw(report) for draw in DRAWINGS]
    gallery = Gallery()
    for drawn in results:
        if isinstance(drawn, str):
            gallery.absent.append(f"{drawn}.")
        else:
            gallery.drawn.append(drawn)
    return gallery


def _side_by_side(report: Report, cpus: int) -> list[Drawn | str]:
    """Each figure in a fork of this process, which has the records already."""
    import matplotlib.backends.backend_agg
    import matplotlib.backends.backend_pdf
    import matplotlib.figure  # noqa: F401  imported once, for all forks

    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(min(cpus, len(DRAWINGS)), fork, initializer=_remember, initargs=(report,)) as pool:
        return list(pool.map(_draw, range(len(DRAWINGS))))


_report: Report | None = None


def _remember(report: Report) -> None:
    global _report
    _report = report


def _draw(number: int) -> Drawn | str:
    assert _report is not None
    return DRAWINGS[number](_report)
