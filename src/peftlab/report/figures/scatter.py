"""The metric against a cost (trainable parameters, memory, seconds), with the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import Any

from peftlab.report.analysis import Analysis
from peftlab.report.figures.labels import by_id
from peftlab.report.figures.numbers import Point, by_test_set, fronts_of, points_of
from peftlab.report.figures.style import GREY, MOST_NAMED, Drawn, blank, finish, style_of
from peftlab.report.figures.ticks import use_round_ticks

MOST_NAMED_POINTS = 24
"""Up to so many rows the legend names all; colours and markers tell them apart."""
FRONT_STYLES: tuple[Any, ...] = ("--", ":", "-.", (0, (6, 2, 1, 2, 1, 2)))
"""Of the fronts of several test sets; they may cross."""
MOST_SPREADS = 100
"""Grey points that have an error bar; of more, the bars would hide the points."""


def draw_panel(panel: Any, report: Analysis, points: Sequence[Point], named: dict[str, int], *, log: bool) -> None:
    """Draw ``points``: those of ``named`` in their colours, the others grey, and a front for each test set."""
    if log:
        panel.set_xscale("log")
    for front, style in zip(fronts_of(points, report.same, highest=report.highest), cycle(FRONT_STYLES), strict=False):
        if len(front) > 1:
            panel.plot(
                [p.cost for p in front], [p.value for p in front], color="#777777", linestyle=style, linewidth=1,
                drawstyle="steps-post", zorder=1,
            )  # fmt: skip
    others = [point for point in points if point.group.id not in named]  # thousands are one drawing call
    if others:
        costs, values = [p.cost for p in others], [p.value for p in others]
        spreads = [p.spread or 0.0 for p in others] if len(others) <= MOST_SPREADS else None
        panel.errorbar(costs, values, yerr=spreads, fmt="o", color=GREY, markersize=3.5, elinewidth=0.8, zorder=2)
    for point in points:
        if (number := named.get(point.group.id)) is None:
            continue
        colour, marker = style_of(number)
        panel.errorbar(
            point.cost, point.value, yerr=point.spread, fmt="none", ecolor=colour, elinewidth=1, capsize=3, zorder=3
        )
        panel.plot(
            point.cost, point.value, marker, color=colour, markersize=6.5, markeredgecolor="white",
            markeredgewidth=0.5, zorder=4,
        )  # fmt: skip
    panel.margins(0.06, 0.08)
    if log and len({point.cost for point in points}) == 1:  # one place has no width on a logarithmic axis
        panel.set_xlim(points[0].cost / 3, points[0].cost * 3)
    if log:
        use_round_ticks(panel)


def named_groups(report: Analysis, points: Sequence[Point]) -> dict[str, int]:
    """Id → number of the groups that the legend names: all if they are few, else those of the front and the best."""
    if len(points) <= MOST_NAMED_POINTS:
        return {point.group.id: number for number, point in enumerate(points)}
    fronts = fronts_of(points, report.same, highest=report.highest)
    front = [point.group for of_set in fronts for point in of_set]
    chosen = {group.id for group in [*front[-MOST_NAMED:], *report.best_first([p.group for p in points])][:MOST_NAMED]}
    shown = [point for point in points if point.group.id in chosen]
    return {point.group.id: number for number, point in enumerate(shown)}


def add_legend(figure: Any, report: Analysis, points: Sequence[Point], named: dict[str, int]) -> None:
    """The named groups beside the panels."""
    from matplotlib.lines import Line2D

    labels = _labels(points, named)
    handles = []
    for name, number in named.items():
        colour, marker = style_of(number)
        handles.append(Line2D([], [], color=colour, marker=marker, linewidth=0, label=labels[name]))
    if len(named) < len(points):
        text = f"{len(points) - len(named)} other rows"
        handles.append(Line2D([], [], color=GREY, marker="o", markersize=4, linewidth=0, label=text))
    handles += [Line2D([], [], color="#777777", linestyle=style, linewidth=1, label=label)
                for label, style in _front_labels(report, points)]  # fmt: skip
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=8, labelspacing=0.7)


def _labels(points: Sequence[Point], named: dict[str, int]) -> dict[str, str]:
    """Id → what the legend calls it."""
    return by_id(((p.group.id, p.group.label) for p in points if p.group.id in named), 36, lines=3)


def _front_labels(report: Analysis, points: Sequence[Point]) -> list[tuple[str, Any]]:
    kinds = by_test_set(points, report.same)  # a front of one panel may be a single point in the other
    styles = [style for members, style in zip(kinds, cycle(FRONT_STYLES), strict=False) if len(members) > 1]
    if len(kinds) > len(FRONT_STYLES):
        return [("Pareto fronts, one a test set", styles[0])] if styles else []
    several = len(kinds) > 1
    return [(f"Pareto front, test set {n}" if several else "Pareto front", style) for n, style in enumerate(styles, 1)]


def draw_parameters(report: Analysis) -> Drawn | str:
    """The metric against trainable parameters; or why not."""
    points = points_of(report, "parameters.trainable")
    if not points:
        return "metric against trainable parameters: no row has both"
    figure, (panel,) = blank(9.6, _height(report, points, 4.6))
    named = named_groups(report, points)
    draw_panel(panel, report, points, named, log=True)
    panel.set_xlabel("trainable parameters, the head included")
    panel.set_ylabel(report.metric.title)
    add_legend(figure, report, points, named)
    front = {p.group.id for of_set in fronts_of(points, report.same, highest=report.highest) for p in of_set}
    rows = [(p.group.id, p.group.label, p.cost, p.value, p.spread, p.group.id in front) for p in points]
    title = f"{report.metric.title} against trainable parameters, mean ± standard deviation over seeds"
    head = ["group", "label", "trainable_parameters", "mean", "std", "on_the_pareto_front"]
    return finish(figure, "parameters", title, head, rows)


def draw_costs(report: Analysis) -> Drawn | str:
    """The metric against peak memory and against training seconds; or why not."""
    from matplotlib.ticker import MaxNLocator

    costs = {"memory.peak_mib": "peak memory, MiB", "timing.train_seconds": "training seconds"}
    points = {path: points_of(report, path) for path in costs}
    if not all(points.values()):
        return "metric against memory and time: no row has them"
    first = points["memory.peak_mib"]
    figure, panels = blank(11.5, _height(report, first, 4.4), columns=2)
    named = named_groups(report, points["timing.train_seconds"])
    for panel, (path, title) in zip(panels, costs.items(), strict=True):
        values = [point.cost for point in points[path]]
        log = max(values) > 8 * min(values)
        draw_panel(panel, report, points[path], named, log=log)
        if not log:
            panel.xaxis.set_major_locator(MaxNLocator(6))
            panel.set_xlim(left=0)  # else two MiB of five hundred look like a world
        panel.set_xlabel(title)
    panels[0].set_ylabel(report.metric.title)
    add_legend(figure, report, points["timing.train_seconds"], named)
    rows = [(path, p.group.id, p.group.label, p.cost, p.value, p.spread) for path in costs for p in points[path]]
    title = f"{report.metric.title} against peak memory and training time, mean ± standard deviation over seeds"
    return finish(figure, "costs", title, ["cost", "group", "label", "value", "mean", "std"], rows)


def _height(report: Analysis, points: Sequence[Point], least: float) -> float:
    """Tall enough for the legend."""
    named = named_groups(report, points)
    lines = sum(1 + label.count("\n") for label in _labels(points, named).values())
    return max(least, 0.9 + 0.135 * lines + 0.1 * (len(named) + 2 + len(_front_labels(report, points))))
