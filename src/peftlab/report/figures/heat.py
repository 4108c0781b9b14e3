"""A heat map of the metric over two numeric config keys, rank and alpha before any others."""

from __future__ import annotations

from collections import defaultdict
from itertools import combinations
from math import isfinite
from typing import Any

from peftlab.report.analysis import Analysis
from peftlab.report.figures.style import Drawn, blank, finish
from peftlab.report.groups import Group

FIRST_CHOICE = ("peft.rank", "peft.alpha")


def draw_heat(report: Analysis) -> Drawn | str:
    """Mean and n over two config keys that vary independently of each other; or why not."""
    found = _choose(report)
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


def _choose(report: Analysis) -> tuple[tuple[str, str], str, dict[tuple[float, float], Group]] | str:
    """Two keys, what else the shown groups have in common, and the group at each pair of values."""
    names = list(report.grouped.key_names)
    numeric = [key for key in names if _numbers(report, key) > 1]
    why = f"heat map: it needs two numeric config keys that vary; here {len(numeric)} do"
    if len(numeric) < 2:
        return why + (f" ({numeric[0]})" if numeric else "")
    pairs = sorted(
        combinations(numeric, 2),
        key=lambda pair: (set(pair) != set(FIRST_CHOICE), -_numbers(report, pair[0]) * _numbers(report, pair[1])),
    )
    for first, second in pairs:
        found = _largest_plane(report, (first, second), names)
        if found is not None:
            return (first, second), *found
    return f"heat map: no two numeric keys vary independently of each other ({', '.join(numeric)} go together)"


def _numbers(report: Analysis, key: str) -> int:
    return len({value for group in report.rows if (value := _number(group.keys.get(key))) is not None})


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None


def _largest_plane(
    report: Analysis, pair: tuple[str, str], names: list[str]
) -> tuple[str, dict[tuple[float, float], Group]] | None:
    """Of the groups that agree in all other keys, the most; None if they fill no more than a line."""
    planes: dict[tuple[tuple[str, str], ...], dict[tuple[float, float], Group]] = defaultdict(dict)
    for group in report.rows:
        x, y = (_number(group.keys.get(key)) for key in pair)
        if x is None or y is None or not group.runs:
            continue
        rest = tuple((key, group.keys[key]) for key in names if key not in pair and key in group.keys)
        planes[rest][x, y] = group
    if not planes:
        return None
    rest, cells = max(planes.items(), key=lambda item: len(item[1]))
    columns, rows = ({place[number] for place in cells} for number in (0, 1))
    if min(len(columns), len(rows)) < 2 or len(cells) <= max(len(columns), len(rows)):
        return None
    short = report.grouped.key_names
    return " ".join(f"{short[key]}={value}" for key, value in rest), cells
