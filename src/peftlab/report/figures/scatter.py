"""The metric against a cost (trainable parameters, memory, seconds), with the Pareto front."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from peftlab.report.analysis import Analysis
from peftlab.report.figures.direct import Spot, name_directly
from peftlab.report.figures.labels import by_id
from peftlab.report.figures.numbers import Point, fronts_of, points_of
from peftlab.report.figures.style import (
    GREY,
    MOST_NAMED,
    Drawn,
    blank,
    finish,
    lay_out,
    over_seeds,
    style_of,
    use_percent,
)
from peftlab.report.figures.ticks import use_round_ticks

MOST_NAMED_POINTS = 24
"""Up to so many rows all have a name, if there is room beside the points; else the best of them."""
MOST_LEGEND = 8
"""Names in a legend; of more, each stands beside its point."""
FRONT_STYLES: tuple[Any, ...] = ("--", ":", "-.", (0, (6, 2, 1, 2, 1, 2)))
"""Of the fronts of several test sets; they may cross."""
POINT_APART = 8.0
"""Between the middles of two points of one cost, in points (1/72 inch)."""
MOST_SPREADS = 100
"""Grey points that have an error bar, and points that are named directly: of more, one would hide the other."""


def draw_panel(panel: Any, report: Analysis, points: Sequence[Point], named: dict[str, int], *, log: bool) -> None:
    """Draw ``points``: those of ``named`` in their colours, the others grey, and a front for each test set."""
    from matplotlib.transforms import offset_copy

    if log:
        panel.set_xscale("log")
    if report.metric.format == "percent":
        use_percent(panel.yaxis)
    numbers = _numbers_of_sets(report)
    for front in fronts_of(points, report.same, highest=report.highest):
        if _is_drawn(front):
            style = FRONT_STYLES[numbers[report.same.of(front[0].group)] % len(FRONT_STYLES)]
            panel.plot(
                [p.cost for p in front], [p.value for p in front], color="#777777", linestyle=style, linewidth=1,
                drawstyle="steps-post", zorder=1,
            )  # fmt: skip
    others = [point for point in points if point.group.id not in named]  # thousands are one drawing call
    if others:
        costs, values = [p.cost for p in others], [p.value for p in others]
        spreads = [p.spread or 0.0 for p in others] if len(others) <= MOST_SPREADS else None
        panel.errorbar(costs, values, yerr=spreads, fmt="o", color=GREY, markersize=3.5, elinewidth=0.8, zorder=2)
    aside = _aside([point for point in points if point.group.id in named])
    for point in points:
        if (number := named.get(point.group.id)) is None:
            continue
        colour, marker = style_of(number)
        reach = point.spread or 0.0
        panel.update_datalim([(point.cost, point.value - reach), (point.cost, point.value + reach)])
        place = offset_copy(panel.transData, fig=panel.figure, x=aside[point.group.id], units="points")
        panel.errorbar(
            point.cost, point.value, yerr=point.spread, fmt="none", ecolor=colour, elinewidth=1, capsize=3, zorder=3,
            transform=place,
        )  # fmt: skip
        panel.plot(
            point.cost, point.value, marker, color=colour, markersize=6.5, markeredgecolor="white",
            markeredgewidth=0.5, zorder=4, transform=place,
        )  # fmt: skip
    panel.margins(0.06, 0.08)
    if log and len({point.cost for point in points}) == 1:  # one place has no width on a logarithmic axis
        panel.set_xlim(points[0].cost / 3, points[0].cost * 3)
    if log:
        use_round_ticks(panel)


def _aside(points: Sequence[Point]) -> dict[str, float]:
    """Id → how far a point is moved to the side, in points (1/72 inch): those of one cost stand beside each other."""
    of_cost: dict[float, list[str]] = {}
    for point in points:
        of_cost.setdefault(point.cost, []).append(point.group.id)
    return {
        name: POINT_APART * (number - (len(names) - 1) / 2)
        for names in of_cost.values()
        for number, name in enumerate(names)
    }


def named_groups(report: Analysis, points: Sequence[Point], most: int) -> dict[str, int]:
    """Id → number of the groups that have a name: all of up to ``most``, of more those of the front and the best."""
    if len(points) <= most:
        return {point.group.id: number for number, point in enumerate(points)}
    fronts = fronts_of(points, report.same, highest=report.highest)
    front = [point.group for of_set in fronts for point in of_set]
    first = dict.fromkeys(group.id for group in [*front[-MOST_NAMED:], *report.best_first([p.group for p in points])])
    chosen = list(first)[:MOST_NAMED]
    shown = [point for point in points if point.group.id in chosen]
    return {point.group.id: number for number, point in enumerate(shown)}


def add_legend(figure: Any, report: Analysis, panels: Sequence[Sequence[Point]], named: dict[str, int]) -> None:
    """The named groups beside the panels, whose points ``panels`` are."""
    from matplotlib.lines import Line2D

    points = panels[-1]
    labels = _labels(points, named)
    handles = []
    for name, number in named.items():
        colour, marker = style_of(number)
        handles.append(Line2D([], [], color=colour, marker=marker, linewidth=0, label=labels[name]))
    handles += [*_others_handle(points, named), *_front_handles(report, panels)]
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=8, labelspacing=0.7)


def _others_handle(points: Sequence[Point], named: dict[str, int]) -> list[Any]:
    from matplotlib.lines import Line2D

    if len(named) == len(points):
        return []
    text = f"{len(points) - len(named)} other rows"
    return [Line2D([], [], color=GREY, marker="o", markersize=4, linewidth=0, label=text)]


def _front_handles(report: Analysis, panels: Sequence[Sequence[Point]]) -> list[Any]:
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], color="#777777", linestyle=style, linewidth=1, label=label)
        for label, style in _front_labels(report, panels)
    ]


def _labels(points: Sequence[Point], named: dict[str, int]) -> dict[str, str]:
    """Id → what the legend calls it."""
    return by_id(((p.group.id, p.group.label) for p in points if p.group.id in named), 36, lines=3)


def _is_drawn(front: Sequence[Point]) -> bool:
    """Whether a front is a line: one point is none."""
    return len(front) > 1


def _numbers_of_sets(report: Analysis) -> dict[tuple[str, ...], int]:
    """Test set → its number from 0, the same in every panel."""
    return {of_set: number for number, of_set in enumerate(report.same.sets(report.rows))}


def _front_labels(report: Analysis, panels: Sequence[Sequence[Point]]) -> list[tuple[str, Any]]:
    """Name and style of each front that is drawn in one of ``panels``."""
    numbers = _numbers_of_sets(report)
    drawn = sorted(
        {
            numbers[report.same.of(front[0].group)]
            for points in panels
            for front in fronts_of(points, report.same, highest=report.highest)
            if _is_drawn(front)
        }
    )
    if len(numbers) > len(FRONT_STYLES):
        return [("Pareto fronts, one a test set", FRONT_STYLES[drawn[0] % len(FRONT_STYLES)])] if drawn else []
    several = len(numbers) > 1
    return [(f"Pareto front, test set {n + 1}" if several else "Pareto front", FRONT_STYLES[n]) for n in drawn]


def draw_parameters(report: Analysis) -> Drawn | str:
    """The metric against trainable parameters; or why not."""
    points = points_of(report, "parameters.trainable")
    if not points:
        return "metric against trainable parameters: no row has both"
    title = f"{report.metric.title} against trainable parameters{over_seeds(report)}"

    def drawn(named: dict[str, int], width: float, height: float) -> tuple[Any, list[Any]]:
        figure, (panel,) = blank(width, height)
        draw_panel(panel, report, points, named, log=True)
        panel.set_xlabel("trainable parameters, the head included")
        panel.set_ylabel(report.metric.head)
        return figure, [panel]

    figure = _with_names(report, [points], drawn, title, widths=(9.6, 9.6), least=4.6)
    front = {p.group.id for of_set in fronts_of(points, report.same, highest=report.highest) for p in of_set}
    rows = [(p.group.id, p.group.label, p.cost, p.value, p.spread, p.group.id in front) for p in points]
    head = ["group", "label", "trainable_parameters", "mean", "std", "on_the_pareto_front"]
    return finish(figure, "parameters", title, head, rows)


def draw_costs(report: Analysis) -> Drawn | str:
    """The metric against peak memory and against training seconds; or why not."""
    from matplotlib.ticker import MaxNLocator

    costs = {"memory.peak_mib": "peak memory, MiB", "timing.train_seconds": "training seconds"}
    points = {path: points_of(report, path) for path in costs}
    if not all(points.values()):
        return "metric against memory and time: no row has them"
    title = f"{report.metric.title} against peak memory and training time{over_seeds(report)}"

    def drawn(named: dict[str, int], width: float, height: float) -> tuple[Any, list[Any]]:
        figure, panels = blank(width, height, columns=2)
        for panel, (path, cost) in zip(panels, costs.items(), strict=True):
            values = [point.cost for point in points[path]]
            log = max(values) > 8 * min(values)
            draw_panel(panel, report, points[path], named, log=log)
            if not log:
                panel.xaxis.set_major_locator(MaxNLocator(6))
                panel.set_xlim(0, 1.06 * max(values))  # else two MiB of five hundred look like a world
            panel.set_xlabel(cost)
        panels[0].set_ylabel(report.metric.head)
        return figure, panels

    figure = _with_names(report, list(points.values()), drawn, title, widths=(11.5, 11.5), least=4.4)
    rows = [(path, p.group.id, p.group.label, p.cost, p.value, p.spread) for path in costs for p in points[path]]
    return finish(figure, "costs", title, ["cost", "group", "label", "value", "mean", "std"], rows)


def _with_names(
    report: Analysis,
    points: Sequence[Sequence[Point]],
    drawn: Callable[[dict[str, int], float, float], tuple[Any, list[Any]]],
    title: str,
    *,
    widths: tuple[float, float],
    least: float,
) -> Any:
    """The figure with names beside the points, of all or else of the best, if all find a place; else with a legend.

    Args:
        report: what is shown.
        points: of each panel; who has a name is decided by the last.
        drawn: makes figure and panels of the groups that have a name, a width and a height.
        title: of the figure.
        widths: with a legend, and without.
        least: height.
    """
    for most in (MOST_NAMED_POINTS, MOST_NAMED):
        named = named_groups(report, points[-1], most)
        crowded = len(points[-1]) > MOST_SPREADS  # in a cloud of points no name has a place
        for height in (least + 2.0, least + 4.0) if len(named) > MOST_LEGEND and not crowded else ():
            figure, panels = drawn(named, widths[1], height)
            if keys := [*_front_handles(report, points), *_others_handle(points[-1], named)]:
                figure.legend(handles=keys, loc="outside lower right", ncols=2, frameon=False, fontsize=8)
            lay_out(figure, title)
            pairs = zip(panels, points, strict=True)
            if not any(name_directly(panel, _spots(of, named), _steps(report, of)) for panel, of in pairs):
                return figure
    figure, _ = drawn(named, widths[0], _height(report, points, named, least))
    add_legend(figure, report, points, named)
    return figure


def _steps(report: Analysis, points: Sequence[Point]) -> Iterator[list[tuple[float, float]]]:
    """The corners of each front, as :func:`draw_panel` draws it."""
    for front in fronts_of(points, report.same, highest=report.highest):
        corners = [(front[0].cost, front[0].value)]
        for point in front[1:]:
            corners += [(point.cost, corners[-1][1]), (point.cost, point.value)]
        yield corners


def _spots(points: Sequence[Point], named: dict[str, int]) -> list[Spot]:
    labels = by_id(((p.group.id, p.group.label) for p in points if p.group.id in named), 26, lines=2)
    return [Spot(p.cost, p.value, p.spread or 0.0, labels.get(p.group.id, "")) for p in points]


def _height(report: Analysis, panels: Sequence[Sequence[Point]], named: dict[str, int], least: float) -> float:
    """Tall enough for the legend."""
    lines = sum(1 + label.count("\n") for label in _labels(panels[-1], named).values())
    return max(least, 0.9 + 0.135 * lines + 0.1 * (len(named) + 2 + len(_front_labels(report, panels))))
