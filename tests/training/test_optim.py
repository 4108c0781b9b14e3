"""Schedules against closed forms, and weight decay on matrices only."""

from __future__ import annotations

import math

import pytest
import torch

from peftlab.training.config import ScheduleConfig
from peftlab.training.optim import SGD, AdamW, Constant, Cosine, Linear, Step


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Constant(), [1, 1, 1, 1, 1]),
        (Linear(), [1, 0.75, 0.5, 0.25, 0]),
        (Linear(final_factor=0.5), [1, 0.875, 0.75, 0.625, 0.5]),
        (Cosine(), [1, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125), 0]),
        (Step(gamma=0.1), [1, 0.1, 0.01, 0.001, 0.0001]),
        (Step(gamma=0.5, every_epochs=2), [1, 1, 0.5, 0.5, 0.25]),
    ],
)
def test_decay(schedule: ScheduleConfig, expected: list[float]) -> None:
    # 100 steps, 25 an epoch
    assert [schedule.factor(step, 100, 25) for step in (0, 25, 50, 75, 100)] == pytest.approx(expected)


def test_warm_up_rises_linearly_and_never_rests_at_zero() -> None:
    schedule = Linear(warmup_fraction=0.1)
    factors = [schedule.factor(step, 100, 50) for step in range(101)]
    assert factors[:11] == pytest.approx([(i + 1) / 11 for i in range(10)] + [1.0])
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[100] == 0


def test_weight_decay_leaves_vectors_alone() -> None:
    matrix, vector = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
    for config in (AdamW(lr=0.1, weight_decay=0.5), SGD(lr=0.1, weight_decay=0.5)):
        optimizer = config.build([{"params": [matrix, vector], "lr": 0.2}])
        assert [(g["weight_decay"], g["lr"]) for g in optimizer.param_groups] == [(0.5, 0.2), (0.0, 0.2)]
