"""What follows from the history of a run: which row is the best, and whether training is over. Imports no torch."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from typing import Any

from peftlab.metric_names import MetricName
from peftlab.objectives.base import Figure, Learned
from peftlab.training.config import TrainerConfig
from peftlab.training.places import Row

OVER_BUDGET = "over_budget"
"""Of a method with a budget: components that it had beyond it then."""


def monitored(config: TrainerConfig, objective: Learned) -> Figure:
    """The figure that the trainer looks at."""
    return objective.figure(config.monitor or objective.selects)


def selection_rule(config: TrainerConfig, objective: Learned) -> str:
    """By which rule the tested weights are chosen, in words: ``highest validation/accuracy``."""
    if config.select == "last":
        return "last epoch"
    figure = monitored(config, objective)
    name = MetricName("validation", figure.name).in_history
    return f"{'highest' if figure.better == 'max' else 'lowest'} {name}"


def best_row(history: Sequence[Row], monitor: Figure) -> Row:
    """The row of ``history`` whose validation is best by ``monitor``: of equals the first.

    Rows in which a method still held more than its budget (:data:`OVER_BUDGET`) count only while there are no others.

    Figures are compared in single precision, as they were when Lightning chose. One that is undefined is the worst
    there can be.
    """
    worst = -math.inf if monitor.better == "max" else math.inf

    def value(row: Row) -> float:
        single = _single(row, monitor)
        return worst if math.isnan(single) else single

    choose = max if monitor.better == "max" else min
    within = [row for row in history if row.get(OVER_BUDGET, 0) <= 0]
    return choose(within or history, key=value)


def selected(row: Row, config: TrainerConfig, objective: Learned) -> dict[str, Any]:
    """What a record says of the ``row`` whose weights are tested and kept: the rule, where it is, its figure."""
    monitor = MetricName("validation", monitored(config, objective).name).in_history
    step = {"step": row["step"]} if config.validate_every_n_steps else {}
    return {"rule": selection_rule(config, objective), "epoch": row["epoch"], **step, monitor: row[monitor]}


def selected_row(record: Mapping[str, Any]) -> Row | None:
    """The row that the ``selection`` of a record names; None if its history has no such row."""
    chosen = record["selection"]
    names = [name for name in ("epoch", "step") if name in chosen]
    return next((row for row in record["history"] if all(row[name] == chosen[name] for name in names)), None)


def training_is_over(history: Sequence[Row], config: TrainerConfig, monitor: Figure) -> bool:
    """Whether training ends with the last row of ``history``, though there are epochs left.

    It does at ``max_steps``, and when the last ``early_stopping_patience`` rows are no better than those before, or the
    figure of the last is no finite number; compared in single precision, as Lightning does.
    """
    if not history:
        return False
    if config.max_steps is not None and history[-1]["step"] >= config.max_steps:
        return True
    if config.early_stopping_patience is None:
        return False
    highest = monitor.better == "max"
    best, waited = -math.inf if highest else math.inf, 0
    for row in history:
        value = _single(row, monitor)
        if value > best if highest else value < best:
            best, waited = value, 0
        else:
            waited += 1
    return waited >= config.early_stopping_patience or not math.isfinite(value)


def _single(row: Row, monitor: Figure) -> float:
    """The figure of ``row`` in single precision; of an undefined one the worst, NaN if there is none."""
    found = row[MetricName("validation", monitor.name).in_history]
    return ctypes.c_float(monitor.worst if found is None else found).value
