"""A heat map of the metric over two numeric config keys, rank and alpha before any others."""

from __future__ import annotations

from math import isfinite
from typing import Any

from peftlab.report.analysis import Analysis
from peftlab.report.figures.numbers import plane_of
from peftlab.report.figures.style import Drawn, blank, finish
from peftlab.report.groups import Group


def draw_heat(report: Analysis) -> Drawn | str:
    """Mean and n over two config keys that vary independently of each other; or why not."""
    found = plane_of(report)
    if isinstance(found, str):
        return found
    keys, rest, cells = found
    xs, ys = (sorted({place[number] for place in cells}) for number in (0, 1))
    table = [[_mean(report, cells.get((x, y))) for x in xs] for y in ys]
    figure, (panel,) = blank(2.6 + 0.95 * max(len(xs), 3), 1.7 + 0.62 * max(len(ys), 2))
    panel.grid(visible=False)
    panel.spines[:].set_visible(False)
    image = panel.imshow(table, origin="lower", cmap="viridis", aspect="auto")
    low, high = image.get_clim()
    rows: list[tuple[Any, ...]] = []
    for row, y in enumerate(ys):
        for column, x in enumerate(xs):
            value = table[row][column]
            group = cells.get((x, y))
            n = 0 if group is None else report.summaries[group.id].n
            text = "–" if group is None else f"{value:.4f}\nn = {n}" if isfinite(value) else f"not finite\nn = {n}"
            dark = isfinite(value) and value < (low + high) / 2 and high > low
            panel.text(
                column, row, text, ha="center", va="center", fontsize=8,
                color="white" if dark or (isfinite(value) and high <= low) else "black",
            )  # fmt: skip
            rows.append((x, y, value if group is not None else None, n))
    names = [report.grouped.key_names.get(key, key) for key in keys]
    panel.set_xticks(range(len(xs)), [f"{x:g}" for x in xs])
    panel.set_yticks(range(len(ys)), [f"{y:g}" for y in ys])
    panel.tick_params(length=0)
    panel.set_xlabel(names[0])
    panel.set_ylabel(names[1])
    figure.colorbar(image, ax=panel, label=report.metric.title)
    others = len(report.rows) - len(cells)
    where = f", where {rest}" if rest else ""
    more = f" ({others} rows are elsewhere)" if others else ""
    title = f"{report.metric.title} over {names[0]} and {names[1]}{where}{more}"
    return finish(figure, "heat", title, [keys[0], keys[1], "mean", "n"], rows)


def _mean(report: Analysis, group: Group | None) -> float:
    mean = None if group is None else report.summaries[group.id].mean
    return float("nan") if mean is None else mean
