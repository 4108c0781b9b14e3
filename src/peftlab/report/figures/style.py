"""What the figures of a report have in common: colours, labels, and a picture with its numbers."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from peftlab.report.analysis import Analysis
from peftlab.report.number_text import fixed
from peftlab.report.table import csv_text

# Paul Tol's "bright" and "muted": told apart by the colour-blind. The shape of a marker tells them apart as well.
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#332288", "#999933", "#882255", "#555555")
MARKERS = "osD^vP"
GREY = "#b0b0b0"
LETTERS_AN_INCH = 10.4
"""Of a title."""
MOST_NAMED = 10
"""Groups that a figure names; the others are grey."""


@dataclass(frozen=True)
class Drawn:
    """A figure in the forms it is written in."""

    name: str
    """Of its files, without ending."""
    title: str
    """Says what it shows, for a caption or a reader who cannot see it."""
    width: int
    """Pixels of a page (96 an inch) at which its letters have their size, 8 pt or more."""
    png: bytes
    pdf: bytes
    csv: str


@dataclass(frozen=True)
class Gallery:
    """The figures of a report, and why others make no sense for its records."""

    drawn: Sequence[Drawn] = ()
    absent: Sequence[str] = ()


def blank(width: float, height: float, columns: int = 1) -> tuple[Any, list[Any]]:
    """A figure in inches, with plain axes side by side."""
    # The object interface, and not pyplot: no global state, no window, safe in any process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)  # type: ignore[union-attr, call-arg]
    panels = list(figure.subplots(1, columns, squeeze=False)[0])
    for panel in panels:
        panel.grid(alpha=0.25)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    return figure, panels


def use_percent(axis: Any) -> None:
    """Write the shares of ``axis`` as percent, whose sign its title has."""
    from matplotlib.ticker import Formatter

    class Percent(Formatter):
        """All ticks with the same digits, no more than they need."""

        def __call__(self, x: float, pos: int | None = None) -> str:
            return percent_texts([x])[0]

        def format_ticks(self, values: list[float]) -> list[str]:
            return percent_texts(values)

    axis.set_major_formatter(Percent())


def percent_texts(shares: Sequence[float]) -> list[str]:
    """Each of ``shares`` in percent, all with as many digits as one of them needs."""
    digits = next((n for n in range(4) if all(abs(100 * x - round(100 * x, n)) < 1e-9 for x in shares)), 4)
    return [fixed(100 * x, digits=digits) for x in shares]


def lay_out(figure: Any, title: str) -> None:
    """Give ``figure`` its title, and everything in it its final place."""
    width = round(LETTERS_AN_INCH * figure.get_figwidth())
    figure.suptitle(wrapped(title, width, lines=3), fontsize=10, x=0.01, horizontalalignment="left")
    figure.draw_without_rendering()
    figure.set_layout_engine(None)  # laid out now: with an engine, each file would be laid out and drawn twice


def finish(figure: Any, name: str, title: str, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> Drawn:
    """The figure as PNG and PDF, and its numbers as CSV."""
    if figure.get_layout_engine() is not None:
        lay_out(figure, title)
    png, pdf = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png", dpi=130, metadata={"Software": None})
    figure.savefig(pdf, format="pdf", metadata={"CreationDate": None, "Producer": None, "Creator": None})
    return Drawn(name, title, round(96 * figure.get_figwidth()), png.getvalue(), pdf.getvalue(), csv_text(head, rows))


def wrapped(text: str, width: int, *, lines: int = 3) -> str:
    """``text`` in lines of ``width`` characters; what does not fit ends with ….  ``$`` is no formula."""
    parts = textwrap.wrap(text, width, max_lines=lines, placeholder=" …") or [text]
    return "\n".join(parts).replace("$", r"\$")


def style_of(number: int) -> tuple[str, str]:
    """Colour and marker of the group with this number."""
    return COLOURS[number % len(COLOURS)], MARKERS[number // len(COLOURS) % len(MARKERS)]


def over_seeds(report: Analysis) -> str:
    """What a title says of points and their bars; nothing where each row has one run."""
    several = any(len(group.runs) > 1 for group in report.rows)
    return ", mean ± standard deviation over seeds" if several else ""


def one_of_many(shown: int, total: int, which: str) -> str:
    """What a title says when not every group is in a figure."""
    return "" if shown == total else f" ({f'{which} {shown}'.strip()} of {total} rows)"
