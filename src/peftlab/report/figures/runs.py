"""Figures of single runs: a dot for each seed, and learning curves with bands."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from peftlab.metric_names import TRAIN_LOSS, MetricName
from peftlab.report.analysis import Analysis
from peftlab.report.figures.labels import fitting
from peftlab.report.figures.numbers import band
from peftlab.report.figures.style import (
    COLOURS,
    MOST_NAMED,
    Drawn,
    blank,
    finish,
    lay_out,
    one_of_many,
    over_seeds,
    use_percent,
)
from peftlab.report.figures.swarm import swarm
from peftlab.report.groups import Group

MOST_STRIPS = 40
DOT = 5.5
"""Size of a dot, in points."""
ROOM = 0.36
"""How far from the middle of its line a dot may lie, in lines."""


def draw_seeds(report: Analysis) -> Drawn | str:
    """Each run a dot, the mean a bar, a line a row of the table; or why not."""
    usable = report.best_first(report.rows)
    if not usable:
        return "seeds: no row has a finite value"
    kept = {group.id for group in usable[:MOST_STRIPS]}
    groups = [group for group in report.rows if group.id in kept]
    labels = fitting([group.label for group in groups], 40, lines=2)
    lines = sum(1 + 0.6 * label.count("\n") for label in labels)
    figure, (panel,) = blank(7.2, 1.3 + 0.3 * lines + 0.1 * (len(groups) < 3))
    dots = []
    for place, group in enumerate(groups):
        colour = COLOURS[place % len(COLOURS)]
        values = group.values(report.metric.value)
        dots += panel.plot(
            values, [place] * len(values), "o", color=colour, markersize=DOT, alpha=0.6, markeredgewidth=0
        )
        panel.plot([fmean(values)] * 2, [place - 0.32, place + 0.32], color=colour, linewidth=2.2)
    panel.set_yticks(range(len(groups)), labels, fontsize=9)
    panel.set_ylim(len(groups) - 0.4, -0.6)
    panel.tick_params(axis="y", length=0)
    panel.set_xlabel(report.metric.head)
    if report.metric.format == "percent":
        use_percent(panel.xaxis)
    panel.margins(x=0.04)
    panel.grid(visible=False, axis="y")
    which = one_of_many(len(groups), len(report.rows), "the best" if len(usable) > MOST_STRIPS else "")
    title = f"{report.metric.title}: each run a dot, the mean a bar{which}"
    lay_out(figure, title)
    for line in dots:
        _spread_out(panel, line)
    rows = [
        (group.id, group.label, run.seed, run.key, run.number(report.metric.value))
        for group in groups for run in group.runs
    ]  # fmt: skip
    return finish(figure, "seeds", title, ["group", "label", "seed", "key", "value"], rows)


def _spread_out(panel: Any, dots: Any) -> None:
    """Move the ``dots`` of one line apart where they would hide each other, as far as the line has room."""
    line = dots.get_ydata()[0]
    points = 72 / panel.figure.dpi * panel.transData.transform([(x, line) for x in dots.get_xdata()])
    (_, start), (_, end) = 72 / panel.figure.dpi * panel.transData.transform([(0, 0), (0, 1)])
    moved = [offset / abs(end - start) for offset in swarm([float(x) for x, _ in points], DOT)]
    shrunk = min(1.0, ROOM / max(map(abs, moved))) if any(moved) else 1.0
    dots.set_ydata([line + shrunk * offset for offset in moved])


def draw_curves(report: Analysis) -> Drawn | str:
    """Training loss and the validation metric an epoch, mean and ± one deviation over seeds; or why not."""
    candidates = [group for group in report.rows if any(run.curve.get(TRAIN_LOSS.in_history) for run in group.runs)]
    if not candidates:
        return "learning curves: no record has a history"
    names = [TRAIN_LOSS.in_history, report.curve]
    if not any(len(run.curve.get(name, ())) > 1 for group in candidates for run in group.runs for name in names):
        return (
            "learning curves: no history has more than one row, and a point is no curve; seeds and table have its value"
        )
    asked = [group for group in candidates if group.curve] or candidates  # the cells that say curve: true
    kept = asked
    if len(asked) > MOST_NAMED:
        best = {group.id for group in report.best_first(asked)[:MOST_NAMED]}
        kept = [group for group in asked if group.id in best]
    labels = fitting([f"{group.label}{_diverged(group)}" for group in kept], 58, lines=2)
    lines = sum(1 + label.count("\n") for label in labels)
    figure, panels = blank(10.0, 3.7 + 0.19 * (lines + 1) / 2, columns=2)
    rows: list[tuple[Any, ...]] = []
    for panel, name in zip(panels, names, strict=True):
        for number, (group, label) in enumerate(zip(kept, labels, strict=True)):
            epochs, centre, width, count = band([run.curve.get(name, ()) for run in group.runs])
            panel.plot(
                epochs, centre, color=COLOURS[number], marker="osD^v"[number % 5], markersize=3.5, linewidth=1.5,
                label=label,
            )  # fmt: skip
            low, high = ([c + sign * w for c, w in zip(centre, width, strict=True)] for sign in (-1, 1))
            if len(epochs) == 1:  # where a band has no width
                panel.errorbar(epochs, centre, yerr=width, fmt="none", ecolor=COLOURS[number], capsize=3)
            panel.fill_between(epochs, low, high, color=COLOURS[number], alpha=0.15, linewidth=0)
            rows += [(name, group.id, group.label, *point) for point in zip(epochs, centre, width, count, strict=True)]
        panel.set_xlabel("epoch")
        percent = name == report.curve and report.curve_in_percent
        panel.set_ylabel(_curve_title(name) + (" (%)" if percent else ""))
        if percent:
            use_percent(panel.yaxis)
        panel.xaxis.get_major_locator().set_params(integer=True)
    handles, shown = panels[0].get_legend_handles_labels()
    figure.legend(handles, shown, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    which = _which_curves(len(kept), len(asked), len(candidates), len(report.rows))
    title = f"Learning curves{over_seeds(report)}{which}"
    return finish(figure, "curves", title, ["quantity", "group", "label", "epoch", "mean", "std", "n"], rows)


def _curve_title(name: str) -> str:
    metric = MetricName.from_history(name)
    return "training loss" if metric == TRAIN_LOSS else metric.title if metric else name


def _which_curves(shown: int, asked: int, candidates: int, rows: int) -> str:
    """Of which rows the curves are, and why not of the others."""
    of = f"the {asked} rows that ask for one" if asked < candidates else f"the {asked} rows with a history"
    if asked == rows:
        return one_of_many(shown, rows, "the best")
    return f" ({of})" if shown == asked else f" (the best {shown} of {of})"


def _diverged(group: Group) -> str:
    """A loss that is not finite cannot be drawn: the mean is over the other seeds, and the legend says so."""
    lost = sum(run.diverged for run in group.runs)
    return f" ({lost} of {len(group.runs)} diverged)" if lost else ""
