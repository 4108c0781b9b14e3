"""The numbers that figures show: points and Pareto fronts, bands of curves, a plane of two config keys."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import isfinite, nan
from statistics import fmean, stdev

from peftlab.report.analysis import Analysis
from peftlab.report.groups import Group
from peftlab.report.same_rows import SameRows

FIRST_CHOICE = ("peft.rank", "peft.alpha")
"""Keys of a plane, before any others."""


@dataclass(frozen=True)
class Point:
    """A group in the plane of cost and metric."""

    group: Group
    cost: float
    value: float
    spread: float | None


def points_of(report: Analysis, path: str) -> list[Point]:
    """The groups that have a cost above 0 at ``path`` and a finite metric."""
    points = []
    for group in report.rows:
        costs, summary = group.values(path), report.summaries[group.id]
        if costs and fmean(costs) > 0 and summary.finite and summary.mean is not None:
            points.append(Point(group, fmean(costs), summary.mean, summary.std))
    return points


def pareto_front(points: Sequence[Point], *, highest: bool) -> list[Point]:
    """The points that no other point beats in one of cost and metric without being worse in the other; by cost."""
    front: list[Point] = []
    sign = 1 if highest else -1
    for point in sorted(points, key=lambda point: (point.cost, -sign * point.value)):
        if not front or sign * point.value > sign * front[-1].value:
            front.append(point)
    return front


def fronts_of(points: Sequence[Point], same: SameRows, *, highest: bool) -> list[list[Point]]:
    """The front of each test set, of whatever section: rows tested on other texts do not beat each other."""
    return [pareto_front(members, highest=highest) for members in by_test_set(points, same)]


def by_test_set(points: Sequence[Point], same: SameRows) -> list[list[Point]]:
    """``points`` by the texts that they were measured on."""
    kinds: dict[tuple[str, ...], list[Point]] = {}
    for point in points:
        kinds.setdefault(same.of(point.group), []).append(point)
    return list(kinds.values())


def band(
    curves: Sequence[Sequence[tuple[float, float]]],
) -> tuple[list[float], list[float], list[float], list[int]]:
    """Where all ``curves`` have a value, in epochs; mean, standard deviation and number of finite values there."""
    known = [dict(curve) for curve in curves if curve]
    places = [place for place in sorted(known[0]) if all(place in one for one in known)] if known else []
    centre, width, count = [], [], []
    for place in places:
        values = [one[place] for one in known if isfinite(one[place])]
        centre.append(fmean(values) if values else nan)
        width.append(stdev(values) if len(values) > 1 else 0.0)
        count.append(len(values))
    return places, centre, width, count


def plane_of(report: Analysis) -> tuple[tuple[str, str], str, dict[tuple[float, float], Group]] | str:
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
