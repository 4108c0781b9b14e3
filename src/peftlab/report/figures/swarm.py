"""Dots that would hide each other, side by side: a beeswarm, the same one each time."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

MOST_DOTS = 100
"""Of one line; more of them are a cloud, which says as much as it is."""


def swarm(places: Sequence[float], apart: float) -> list[float]:
    """How far each dot is moved across the line that it lies on, so that no two centres are nearer than ``apart``.

    Dots that hide no other stay on the line; those that do are moved as little as it takes, to both sides alike.
    """
    moved = [0.0] * len(places)
    if len(places) > MOST_DOTS:
        return moved
    order = sorted(range(len(places)), key=places.__getitem__)
    heap: list[int] = []
    """Dots that overlap the one before them."""
    for number in order:
        if heap and places[number] - places[heap[-1]] >= apart:
            _centre(moved, heap)
            heap = []
        near = [one for one in heap if places[number] - places[one] < apart]
        reach = {one: sqrt(apart**2 - (places[number] - places[one]) ** 2) for one in near}
        beside = [0.0, *(moved[one] + side * reach[one] for one in near for side in (1, -1))]
        free = (at for at in beside if all(abs(at - moved[one]) > reach[one] - 1e-9 for one in near))
        moved[number] = min(free, key=lambda at: (abs(at), -at))
        heap.append(number)
    _centre(moved, heap)
    return moved


def _centre(moved: list[float], heap: Sequence[int]) -> None:
    """Move the dots of ``heap`` together, so that they reach as far to one side as to the other."""
    offsets = [moved[one] for one in heap]
    middle = (max(offsets, default=0.0) + min(offsets, default=0.0)) / 2
    for one in heap:
        moved[one] -= middle
