"""Dots that would hide each other."""

from __future__ import annotations

import random
from itertools import combinations
from math import dist

import pytest

from peftlab.report.figures.swarm import MOST_DOTS, swarm


def test_dots_apart_stay_on_their_line() -> None:
    assert swarm([0.0, 10.0, 5.0], 5.0) == [0.0, 0.0, 0.0]
    assert swarm([], 5.0) == []


def test_equal_dots_stand_side_by_side() -> None:
    assert sorted(swarm([3.0, 3.0], 2.0)) == [-1.0, 1.0]
    assert sorted(swarm([3.0, 3.0, 3.0], 2.0)) == [-2.0, 0.0, 2.0]
    assert swarm([3.0, 9.0, 3.0], 2.0)[1] == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_no_dot_hides_another_and_none_moves_further_than_a_column_of_them(seed: int) -> None:
    drawn = random.Random(seed)
    places = [drawn.choice((drawn.uniform(0, 40), drawn.randrange(0, 40, 4))) for _ in range(40)]
    moved = swarm(places, 3.0)
    assert min(dist(first, second) for first, second in combinations(zip(places, moved, strict=True), 2)) > 3.0 - 1e-6
    assert max(map(abs, moved)) < 3.0 * 40 / 2
    assert moved == swarm(places, 3.0)


def test_a_cloud_is_left_as_it_is() -> None:
    assert not any(swarm([1.0] * (MOST_DOTS + 1), 3.0))
