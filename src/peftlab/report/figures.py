"""All figures of a report. One that makes no sense for its records is left out, with the reason."""

from __future__ import annotations

from peftlab.report.build import Report
from peftlab.report.figures_heat import draw_heat
from peftlab.report.figures_runs import draw_curves, draw_seeds
from peftlab.report.figures_scatter import draw_costs, draw_parameters
from peftlab.report.figures_style import Gallery


def draw_all(report: Report) -> Gallery:
    """Draw what makes sense for ``report``."""
    gallery = Gallery()
    for draw in (draw_parameters, draw_heat, draw_curves, draw_seeds, draw_costs):
        drawn = draw(report)
        if isinstance(drawn, str):
            gallery.absent.append(f"{drawn}.")
        else:
            gallery.drawn.append(drawn)
    return gallery
