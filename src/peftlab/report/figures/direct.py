"""Names of points beside the points themselves, where a legend would be too long to look things up in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

RADII = (7, 11, 16, 23, 32, 44, 60, 80, 105, 135, 170, 210, 260, 320)
"""Pixels at 100 dpi between a point and its name, tried from the nearest on."""
DIRECTIONS = 24
_BAR = 14.0
"""Pixels further away that a name may stand for each line that it does not lie on."""
_MARKER = 5.0
"""Half of a marker's width."""


@dataclass(frozen=True)
class Spot:
    """A point of a panel, in data coordinates."""

    x: float
    y: float
    spread: float = 0.0
    """Of its error bar, up and down."""
    name: str = ""
    """What to write beside it; nothing if it is empty."""


@dataclass(frozen=True)
class _Box:
    left: float
    bottom: float
    right: float
    top: float

    def meets(self, other: _Box, gap: float = 0.0) -> bool:
        return (
            self.left - gap < other.right
            and other.left < self.right + gap
            and self.bottom - gap < other.top
            and other.bottom < self.top + gap
        )

    def holds(self, other: _Box) -> bool:
        return (
            self.left <= other.left
            and other.right <= self.right
            and self.bottom <= other.bottom
            and other.top <= self.top
        )

    def nearest(self, x: float, y: float) -> tuple[float, float]:
        return min(max(x, self.left), self.right), min(max(y, self.bottom), self.top)


@dataclass(frozen=True)
class _Line:
    x: float
    y: float
    to_x: float
    to_y: float

    def crosses(self, box: _Box) -> bool:
        """Whether it goes through ``box`` (Liang and Barsky 1984)."""
        enters, leaves = 0.0, 1.0
        dx, dy = self.to_x - self.x, self.to_y - self.y
        for along, room in (
            (-dx, self.x - box.left), (dx, box.right - self.x), (-dy, self.y - box.bottom), (dy, box.top - self.y),
        ):  # fmt: skip
            if along == 0:
                if room < 0:
                    return False
            elif along < 0:
                enters = max(enters, room / along)
            else:
                leaves = min(leaves, room / along)
        return enters < leaves

    def meets(self, other: _Line) -> bool:
        """Whether the two cross."""

        def side(line: _Line, x: float, y: float) -> float:
            return (line.to_x - line.x) * (y - line.y) - (line.to_y - line.y) * (x - line.x)

        return (
            side(self, other.x, other.y) * side(self, other.to_x, other.to_y) < 0
            and side(other, self.x, self.y) * side(other, self.to_x, self.to_y) < 0
        )


def name_directly(
    panel: Any, spots: Sequence[Spot], lines: Iterable[Sequence[tuple[float, float]]] = (), *, size: float = 8.0
) -> int:
    """Write each name where it is nearest to its point and lies on no other; return how many found no place.

    To be called when the figure is laid out: what is written does not change the layout.

    Args:
        panel: the axes.
        spots: all points that are drawn there.
        lines: through further points, in data coordinates, on which a name had better not lie.
        size: of the letters, in points.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patheffects import withStroke

    figure = panel.figure
    renderer = figure.canvas.get_renderer()
    frame = panel.get_window_extent(renderer)
    room = _Box(frame.x0, frame.y0, frame.x1, frame.y1)
    transformed = [panel.transData.transform((spot.x, spot.y)) for spot in spots]
    places = [(float(x), float(y)) for x, y in transformed]
    markers = [_Box(x - _MARKER, y - _MARKER, x + _MARKER, y + _MARKER) for x, y in places]
    drawn = [*lines, *([(s.x, s.y - s.spread), (s.x, s.y + s.spread)] for s in spots if s.spread)]
    bars = [
        _line(panel.transData.transform(start), panel.transData.transform(end))
        for line in drawn
        for start, end in pairwise(line)
    ]
    written: list[_Box] = []
    leaders: list[_Line] = []
    lost = 0
    for number in _crowded_first(spots, places):
        text = panel.text(0, 0, spots[number].name, fontsize=size, color="#222222", transform=None, zorder=6)
        text.set_in_layout(False)
        text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
        extent = text.get_window_extent(renderer)
        place = places[number]
        free = (
            (cost, box)
            for cost, box in _candidates(place, extent.width, extent.height, bars)
            if room.holds(box) and _is_free(box, place, markers, number, written, leaders)
        )
        found = min(free, key=lambda pair: pair[0], default=None)
        if found is None:
            text.remove()
            lost += 1
            continue
        box = found[1]
        written.append(box)
        leader = _line(place, box.nearest(*place))
        leaders.append(leader)
        to_figure = figure.transFigure.inverted()  # which stays where it is at another resolution
        text.set(transform=figure.transFigure, position=to_figure.transform((box.left, box.bottom)), va="bottom")
        if math.hypot(leader.to_x - leader.x, leader.to_y - leader.y) > RADII[2]:
            ends = [to_figure.transform(end) for end in (place, (leader.to_x, leader.to_y))]
            line = Line2D(
                *zip(*ends, strict=True), transform=figure.transFigure, color="#888888", linewidth=0.6, zorder=3
            )
            line.set_in_layout(False)
            panel.add_line(line)
    return lost


def _line(start: Sequence[float], end: Sequence[float]) -> _Line:
    return _Line(float(start[0]), float(start[1]), float(end[0]), float(end[1]))


def _crowded_first(spots: Sequence[Spot], places: Sequence[tuple[float, float]]) -> list[int]:
    """Numbers of the spots with names: those first whose nearest neighbours leave the least room."""

    def room(number: int) -> float:
        away = sorted(math.dist(places[number], place) for n, place in enumerate(places) if n != number)
        return sum(away[:4])

    return sorted((n for n, spot in enumerate(spots) if spot.name), key=lambda n: (room(n), n))


def _candidates(
    place: tuple[float, float], width: float, height: float, bars: Sequence[_Line]
) -> Iterator[tuple[float, _Box]]:
    """Boxes around ``place``, and what each costs."""
    x, y = place
    for radius in RADII:
        for step in range(DIRECTIONS):
            angle = 2 * math.pi * step / DIRECTIONS
            across, up = math.cos(angle), math.sin(angle)
            left = x + across * (radius + width / 2) - width / 2
            bottom = y + up * (radius + height / 2) - height / 2
            box = _Box(left, bottom, left + width, bottom + height)
            yield radius + _BAR * sum(bar.crosses(box) for bar in bars), box


def _is_free(
    box: _Box,
    place: tuple[float, float],
    markers: Sequence[_Box],
    own: int,
    written: Sequence[_Box],
    leaders: Sequence[_Line],
) -> bool:
    leader = _line(place, box.nearest(*place))
    return not (
        any(box.meets(other, 2.0) for other in written)
        or any(box.meets(marker) for marker in markers)
        or any(one.crosses(box) or one.meets(leader) for one in leaders)
        or any(leader.crosses(other) for other in written)
        or any(leader.crosses(marker) for n, marker in enumerate(markers) if n != own)
    )
