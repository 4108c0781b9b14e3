"""The two pictures of a declared sweep: learning curves, and the metric against trainable parameters."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import cycle
from math import isfinite, nan
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from peftlab.files import write_atomically
from peftlab.report.sweep_table import Records, figure, rows_of
from peftlab.sweeps.choice import diverged
from peftlab.sweeps.declaration import Column, Sweep

# Paul Tol's "bright" and "muted": told apart by the colour-blind.
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#332288", "#999933", "#882255", "#555555")


def draw_learning_curves(path: Path, sweep: Sweep, records: Records) -> None:
    """Training loss and validation accuracy an epoch, for the cells that ask for a curve: mean, and ± one deviation.

    A loss that is not finite cannot be drawn: the mean is over the other seeds, and the legend says so.
    """
    cells = [cell for cell in sweep.cells if cell.curve and any((cell.id, seed) in records for seed in sweep.seeds)]
    drawing, axes = _figure(10.0, 4.4, columns=2)
    for panel, key, title in zip(
        axes, ("train/loss", "validation/accuracy"), ("training loss", "validation accuracy"), strict=True
    ):
        for colour, cell in zip(cycle(COLOURS), cells, strict=False):  # more than ten curves share colours
            histories = [records[cell.id, seed]["history"] for seed in sweep.seeds if (cell.id, seed) in records]
            epochs = range(1, 1 + min(len(history) for history in histories))
            values = [_finite([history[epoch - 1][key] for history in histories]) for epoch in epochs]
            centre = [mean(points) if points else nan for points in values]
            width = [stdev(points) if len(points) > 1 else 0.0 for points in values]
            lost = sum(diverged(records[cell.id, seed]) for seed in sweep.seeds if (cell.id, seed) in records)
            label = f"{cell.title}{f' ({lost} of {len(histories)} seeds diverged)' if lost else ''}"
            panel.plot(epochs, centre, color=colour, marker="o", markersize=3.5, label=label)
            panel.fill_between(
                epochs,
                [c - w for c, w in zip(centre, width, strict=True)],
                [c + w for c, w in zip(centre, width, strict=True)],
                color=colour,
                alpha=0.15,
                linewidth=0,
            )
        panel.set_xlabel("epoch")
        panel.set_ylabel(title)
        panel.xaxis.get_major_locator().set_params(integer=True)
    handles, labels = axes[0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    drawing.suptitle(sweep.title, fontsize=10, x=0.01, horizontalalignment="left")
    _save(path, drawing)


def draw_against_parameters(path: Path, sweep: Sweep, records: Records) -> None:
    """The sweep's metric against trainable parameters (logarithmic), a point a row with ± one standard deviation."""
    metric = next(column for column in sweep.columns if column.value == sweep.metric)
    trainable = Column(title="trainable parameters", value="parameters.trainable", format="count")
    drawing, (panel,) = _figure(9.6, max(4.4, 0.6 + 0.23 * len(rows_of(sweep))), columns=1)  # the legend's lines
    for number, cell in enumerate(rows_of(sweep)):
        scores = figure(sweep, cell, metric, records).values
        if not scores:
            continue
        x = mean(figure(sweep, cell, trainable, records).values)
        panel.errorbar(
            x,
            mean(scores),
            yerr=stdev(scores) if len(scores) > 1 else None,
            fmt="osD^v"[number // len(COLOURS) % 5] if number >= len(COLOURS) else "o",
            color=COLOURS[number % len(COLOURS)],
            capsize=3,
            markersize=6,
            label=cell.title,
        )
    panel.set_xscale("log")
    panel.set_xlabel("trainable parameters, the head included")
    panel.set_ylabel(metric.title)
    drawing.legend(loc="outside right center", frameon=False, fontsize=9)
    drawing.suptitle(sweep.title, fontsize=10, x=0.01, horizontalalignment="left")
    _save(path, drawing)


def _finite(values: Sequence[float]) -> list[float]:
    return [value for value in values if isfinite(value)]


def _figure(width: float, height: float, *, columns: int) -> tuple[Any, Sequence[Any]]:
    # The object interface, and not pyplot: no global state, no window, safe in any process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(drawing)
    axes = list(drawing.subplots(1, columns, squeeze=False)[0])
    for panel in axes:
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    return drawing, axes


def _save(path: Path, drawing: Any) -> None:
    buffer = io.BytesIO()
    drawing.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    write_atomically(path, buffer.getvalue())
