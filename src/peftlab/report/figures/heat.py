"""A heat map of the metric over two numeric config keys, rank and alpha before any others."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, sqrt
from statistics import fmean
from typing import Any

from peftlab.report.analysis import Analysis
from peftlab.report.columns import cell_of
from peftlab.report.figures.numbers import plane_of
from peftlab.report.figures.style import Drawn, blank, finish, use_percent
from peftlab.report.groups import Group


def draw_heat(report: Analysis) -> Drawn | str:
    """Mean, deviation and n over two config keys that vary independently of each other; or why not.

    The colours span at least twice the noise up and down, so that cells which seeds alone tell apart look alike.
    """
    found = plane_of(report)
    if isinstance(found, str):
        return found
    keys, rest, cells = found
    xs, ys = (sorted({place[number] for place in cells}) for number in (0, 1))
    table = [[_mean(report, cells.get((x, y))) for x in xs] for y in ys]
    noise, of_what = _noise(report, list(cells.values()))
    figure, (panel,) = blank(2.6 + 1.25 * max(len(xs), 3), 1.9 + 0.62 * max(len(ys), 2))
    panel.grid(visible=False)
    panel.spines[:].set_visible(False)
    image = panel.imshow(table, origin="lower", cmap="viridis", aspect="auto")
    image.set_clim(*_range(table, noise))
    low, high = image.get_clim()
    rows: list[tuple[Any, ...]] = []
    for row, y in enumerate(ys):
        for column, x in enumerate(xs):
            value = table[row][column]
            group = cells.get((x, y))
            n = 0 if group is None else report.summaries[group.id].n
            text = "–" if group is None else f"{_written(report, group)}\nn = {n}"
            dark = isfinite(value) and value < (low + high) / 2 and high > low
            panel.text(
                column, row, text, ha="center", va="center", fontsize=8,
                color="white" if dark or (isfinite(value) and high <= low) else "black",
            )  # fmt: skip
            std = None if group is None else report.summaries[group.id].std
            rows.append((x, y, value if group is not None else None, std, n))
    names = [report.grouped.key_names.get(key, key) for key in keys]
    panel.set_xticks(range(len(xs)), [f"{x:g}" for x in xs])
    panel.set_yticks(range(len(ys)), [f"{y:g}" for y in ys])
    panel.tick_params(length=0)
    panel.set_xlabel(names[0])
    panel.set_ylabel(names[1])
    bar = figure.colorbar(image, ax=panel)
    bar.set_label(_bar_title(report, noise, of_what), fontsize=8)
    bar.ax.tick_params(labelsize=8)
    if report.metric.format == "percent":
        use_percent(bar.ax.yaxis)
    others = len(report.rows) - len(cells)
    where = f", where {rest}" if rest else ""
    more = f" ({others} rows are elsewhere)" if others else ""
    title = f"{report.metric.title} over {names[0]} and {names[1]}{where}{more}"
    return finish(figure, "heat", title, [keys[0], keys[1], "mean", "std", "n"], rows)


NOISES = 2
"""Times the noise that the colours span up and down at least."""


def _noise(report: Analysis, groups: Sequence[Group]) -> tuple[float, str]:
    """How much a cell varies by chance, and what that is: over seeds, else by the number of test rows; 0 if unknown."""
    spreads = [std for group in groups if (std := report.summaries[group.id].std) is not None]
    if spreads:
        return sqrt(fmean([std * std for std in spreads])), "std over seeds"
    errors = [error for group in groups if (error := report.sampling_error(group)) is not None]
    return max(errors, default=0.0), "binomial errors"


def _range(table: Sequence[Sequence[float]], noise: float) -> tuple[float, float]:
    """Lowest and highest mean, drawn apart until the noise has its room."""
    means = [mean for row in table for mean in row if isfinite(mean)] or [0.0]
    low, high = min(means), max(means)
    more = max(0.0, NOISES * noise - (high - low) / 2)
    return low - more, high + more


def _bar_title(report: Analysis, noise: float, of_what: str) -> str:
    metric = report.metric
    if not noise:
        return metric.head
    return f"{metric.head}\nspans at least ± {NOISES} {of_what}"


def _written(report: Analysis, group: Group) -> str:
    metric, values = report.metric, group.values(report.metric.value)
    text = cell_of(values, metric, complete=len(values), expected=len(values)).text
    return text.replace(" ± ", "\n± ")


def _mean(report: Analysis, group: Group | None) -> float:
    mean = None if group is None else report.summaries[group.id].mean
    return float("nan") if mean is None else mean
