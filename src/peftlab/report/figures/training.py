"""curves.png: loss and the selecting figure over the epochs, on train and validation."""

from __future__ import annotations

import io
from math import nan
from pathlib import Path
from typing import Any

from peftlab.files import write_atomically
from peftlab.metric_names import MetricName
from peftlab.objectives.base import Learned
from peftlab.training.places import Row, ends_epoch, epochs_done

COLOURS = {"train": "#4477aa", "validation": "#ee6677"}  # Paul Tol's "bright": told apart by the colour-blind


def draw_curves(
    path: Path, history: list[dict[str, Any]], objective: Learned, *, title: str, kept: Row | None = None
) -> None:
    """Draw ``history``; a dashed line marks the row whose weights were ``kept``.

    Epochs are counted from 1, as people do, and rows inside them lie between; the figures on train are running means
    since the row before.
    """
    # The object interface, and not pyplot: no global state, no window, safe in any process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9.0, 3.6), dpi=130, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    epochs = [epochs_done(row) for row in history]
    for axes, quantity in zip(figure.subplots(1, 2), ("loss", objective.selects), strict=True):
        for split, colour in COLOURS.items():
            values = [
                nan if (value := row[MetricName(split, quantity).in_history]) is None else value for row in history
            ]
            axes.plot(epochs, values, color=colour, marker="o", markersize=4, label=split)
        if kept is not None:
            label = "kept epoch" if ends_epoch(kept) else "kept step"
            axes.axvline(epochs_done(kept), color="#999999", linestyle="--", linewidth=1, label=label)
        axes.set_xlabel("epoch")
        axes.set_ylabel(objective.loss_title if quantity == "loss" else objective.figure(quantity).title)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlim(min(0.5, min(epochs) / 2), max(epochs) + 0.5)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.suptitle(title, fontsize=10)
    buffer = io.BytesIO()
    # savefig would lay everything out a second time
    canvas.print_png(buffer, metadata={"Software": None})  # type: ignore[no-untyped-call]
    write_atomically(path, buffer.getvalue())
