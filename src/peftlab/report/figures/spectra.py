"""inspect.png: spectra and sizes of a run's weight updates, and the directions it shares with another run."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftlab.files import write_atomically
from peftlab.report.owned import PNG_MARK

# Paul Tol's "bright": told apart by the colour-blind.
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#ee8866", "#222222")
OUTSIDE = "outside the blocks"


@dataclass(frozen=True)
class Spectrum:
    """One layer, as the picture needs it."""

    name: str
    singular_values: list[float]
    relative_size: float

    @property
    def depth(self) -> int | None:
        """Number of the block that the layer stands in; None outside the blocks."""
        match = re.search(r"(?:^|\.)(\d+)\.", self.name)
        return int(match[1]) if match else None

    @property
    def kind(self) -> str:
        """What is the same in every block: the name behind the block's number."""
        if self.depth is None:
            return OUTSIDE
        return re.sub(r".*?(?:^|\.)\d+\.", "", self.name, count=1)


def draw_inspection(
    path: Path,
    layers: Sequence[Spectrum],
    *,
    title: str,
    phi: list[list[float]] | None = None,
    chance: list[list[float]] | None = None,
    runs: tuple[str, str] = ("", ""),
    phi_title: str = "",
) -> None:
    """Draw spectra and sizes, and beside them φ(i, j) if it is given, and write the PNG atomically.

    Args:
        path: where to.
        layers: what was measured.
        title: above the panels.
        phi: similarity of the first i and j directions of two runs, i along the first axis.
        chance: what ``phi`` is of random directions, of the same size.
        runs: names of the two runs, for the axes of ``phi``.
        phi_title: above that panel.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys(layer.kind for layer in layers if layer.kind != OUTSIDE))
    blocks = 0 < len(kinds) <= len(COLOURS)
    colours = {kind: COLOURS[index % len(COLOURS)] for index, kind in enumerate(kinds)}
    if any(layer.kind == OUTSIDE for layer in layers):
        colours[OUTSIDE] = "#aaaaaa" if blocks else COLOURS[0]
    height = 4.2 if blocks or len(layers) <= 16 else min(0.22 * len(layers) + 1.2, 14.0)
    figure = Figure(figsize=(10.0 if phi is None else 14.5, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.06)  # type: ignore[union-attr, call-arg]
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2 if phi is None else 3)
    _draw_spectra(axes[0], layers, colours)
    if blocks:
        _draw_sizes_by_depth(axes[1], layers, colours)
    else:
        _draw_sizes_by_name(axes[1], layers, colours)
    if blocks:
        figure.legend(
            handles=_legend(colours), loc="outside lower center", ncols=min(4, len(colours)), frameon=False, fontsize=9
        )
    if phi is not None:
        _draw_similarity(figure, axes[2], phi, chance, runs, phi_title)
    figure.suptitle(title, fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata=PNG_MARK)
    write_atomically(path, buffer.getvalue())


def _legend(colours: dict[str, str]) -> list[Any]:
    from matplotlib.lines import Line2D

    return [Line2D([], [], color=colour, label=kind, linewidth=2.5) for kind, colour in colours.items()]


MOST_NAMES = 80
"""Names of layers that have room under each other; of more layers every second has one, or every third, …"""
SHOWN = 1e-4
"""Smallest share of the first singular value that is drawn."""


def _draw_spectra(axes: Any, layers: Sequence[Spectrum], colours: dict[str, str]) -> None:
    from matplotlib.ticker import MaxNLocator

    longest = 1
    for layer in layers:
        if not layer.singular_values or not layer.singular_values[0]:
            continue
        shares = [value / layer.singular_values[0] for value in layer.singular_values]
        shares = [share for share in shares if share >= SHOWN]
        longest = max(longest, len(shares))
        axes.plot(
            range(1, len(shares) + 1), shares, color=colours[layer.kind], alpha=0.55, linewidth=1.2,
            marker="o" if len(shares) <= 32 else None, markersize=3,
        )  # fmt: skip
    axes.axhline(0.01, color="#999999", linestyle="--", linewidth=1)
    axes.annotate(
        "1 %", (0, 0.01), xycoords=("axes fraction", "data"), xytext=(4, -3), textcoords="offset points",
        va="top", color="#777777", fontsize=8,
    )  # fmt: skip
    axes.set_yscale("log")
    axes.set_ylim(SHOWN, 1.5)
    axes.set_xlim(0.5, longest + 0.5)
    inner = MaxNLocator(nbins=7, integer=True, min_n_ticks=1).tick_values(1, longest)
    axes.set_xticks([1, *(int(tick) for tick in inner if 1 < tick <= longest)])
    axes.set_xlabel("singular value i of ΔW")
    axes.set_ylabel("σᵢ / σ₁")
    axes.set_title("spectrum of each layer's update", fontsize=10)
    _plain(axes)


def _draw_sizes_by_depth(axes: Any, layers: Sequence[Spectrum], colours: dict[str, str]) -> None:
    from matplotlib.ticker import PercentFormatter

    for kind, colour in colours.items():
        of_kind = sorted(
            (-1 if layer.depth is None else layer.depth, layer.relative_size) for layer in layers if layer.kind == kind
        )
        axes.plot(
            *zip(*of_kind, strict=True), color=colour, marker="o", markersize=4,
            linewidth=0 if kind == OUTSIDE else 1.5,
        )  # fmt: skip
    depth = max(layer.depth or 0 for layer in layers)
    ticks = list(range(0, depth + 1, 1 + depth // 10))
    axes.set_xticks([-1, *ticks], ["outside", *ticks]) if OUTSIDE in colours else axes.set_xticks(ticks)
    axes.set_ylim(0, _with_headroom(layers))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("block")
    axes.set_ylabel("‖ΔW‖ / ‖W‖")
    axes.set_title("size of the update, relative to the weight", fontsize=10)
    _plain(axes)


def _draw_sizes_by_name(axes: Any, layers: Sequence[Spectrum], colours: dict[str, str]) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    places = range(len(layers))
    thick = 0.8 if len(layers) > 4 else 0.15 * len(layers)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.barh(
        places, [layer.relative_size for layer in layers], color=[colours[layer.kind] for layer in layers], height=thick
    )
    every = -(-len(layers) // MOST_NAMES)
    axes.set_yticks(places[::every], [layer.name for layer in layers[::every]], fontsize=8)
    axes.set_ylim(len(layers) - 0.4, -0.6)
    axes.set_xlim(0, _with_headroom(layers))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("‖ΔW‖ / ‖W‖")
    axes.set_title("size of the update, relative to the weight", fontsize=10)
    _plain(axes)
    axes.grid(visible=False, axis="y")


def _with_headroom(layers: Sequence[Spectrum]) -> float:
    """The end of an axis of sizes: a mark at the largest is drawn whole."""
    return 1.08 * max(layer.relative_size for layer in layers) or 1.0


def _draw_similarity(
    figure: Any,
    axes: Any,
    phi: list[list[float]],
    chance: list[list[float]] | None,
    runs: tuple[str, str],
    title: str,
) -> None:
    n, m = len(phi), len(phi[0])
    image = axes.imshow(
        phi, origin="lower", vmin=0, vmax=1, cmap="viridis", aspect="auto", extent=(0.5, m + 0.5, 0.5, n + 0.5),
    )  # fmt: skip
    if max(n, m) <= 10:
        for i, row in enumerate(phi):
            for j, value in enumerate(row):
                axes.text(j + 1, i + 1, f"{value:.2f}".removeprefix("0") if value < 0.995 else "1", ha="center",
                          va="center", fontsize=8, color="white" if value < 0.6 else "black")  # fmt: skip
    axes.set_xticks(_ticks(m))
    axes.set_yticks(_ticks(n))
    axes.set_xlabel(f"first j directions of {runs[1]}")
    axes.set_ylabel(f"first i directions of {runs[0]}")
    bar = figure.colorbar(image, ax=axes, label="φ(i, j)")
    if chance is not None:
        low, high = chance[0][0], chance[-1][-1]
        title += f"\nrandom directions: max(i, j) / inputs, {low:.2f} … {high:.2f}"
        for end in (low, high):  # between these two lines is what chance gives
            bar.ax.axhline(end, color="white", linewidth=1.5)
            bar.ax.axhline(end, color="black", linewidth=1.5, linestyle=(0, (2, 2)))
    axes.set_title(title, fontsize=10)


def _ticks(count: int) -> list[int]:
    step = max(1, round(count / 8))
    return [1, *(tick for tick in range(step, count + 1, step) if tick > 1)]


def _plain(axes: Any) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
