"""Whether the figures of a record agree with each other: what can be checked with the record alone. Imports no torch.

How the figures of one split determine each other, the objective knows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from peftlab.metric_names import UNDEFINED, MetricName, task_and_figure
from peftlab.objectives.base import Figure, Learned
from peftlab.objectives.recorded import FIELD
from peftlab.training.config import TrainerConfig
from peftlab.training.places import OF_EPOCH, ends_epoch, place_in_words
from peftlab.training.selection import best_row, monitored, selected, selected_row


@dataclass(frozen=True)
class Finding:
    """One thing that is not as a record says, or that could not be checked."""

    about: str
    """The file or the key: ``adapter.safetensors``, ``metrics.test.accuracy``."""
    said: str
    """What is there, and what should be."""

    def __str__(self) -> str:
        return f"{self.about}: {self.said}"


def inconsistencies(record: dict[str, Any], trainer: TrainerConfig, objective: Learned) -> Iterator[Finding]:
    """Every figure of a finished ``record`` that contradicts another one.

    Args:
        record: of the known schema version.
        trainer: the run's checked ``trainer`` group, which holds the rule of selection.
        objective: the run's.
    """
    yield from _seeds(record)
    yield from _objective(record, objective)
    yield from _rows_of_history(record["history"], trainer.validate_every_n_steps)
    yield from _history(record["history"], objective)
    yield from _selection(record, trainer, objective)
    yield from _rows(record)
    yield from _split(record, "validation", objective)
    yield from _split(record, "test", objective)
    yield from _before(record, objective)
    yield from _timing(record)
    yield from _frozen(record["backbone"])


ADDED_LATER = frozenset({"matthews"})
"""Figures of a test that records of earlier versions do not have."""


def same(first: Any, second: Any) -> bool:
    """Equal to the bit, and NaN equal to NaN."""
    return repr(first) == repr(second) or bool(first == second)


def _seeds(record: dict[str, Any]) -> Iterator[Finding]:
    config, data = record["config"], record["config"]["data"]
    order = data.get("order_seed")
    expected = {
        "seed": config["seed"],
        "order_seed": config["seed"] if order is None else order,
        "split_seed": data["split_seed"],
    }
    if record["seeds"] != expected:
        yield Finding("seeds", f"{record['seeds']}, but the config gives {expected}")
    if record["name"] != config["name"]:
        yield Finding("name", f"'{record['name']}', but the config's is '{config['name']}'")


def _objective(record: dict[str, Any], objective: Learned) -> Iterator[Finding]:
    """What a reader of the record is told of its figures; figures that came later are not there."""
    known, told = objective.facts(), record.get(FIELD)
    if told is None:
        return
    for name in ("name", "selects"):
        if told[name] != known[name]:
            yield Finding(f"{FIELD}.{name}", f"'{told[name]}', but the config's objective has '{known[name]}'")
    for name, better in told["metrics"].items():
        if known["metrics"].get(name) != better:
            yield Finding(f"{FIELD}.metrics.{name}", f"'{better}', but the objective has {known['metrics'].get(name)}")


def _rows_of_history(history: list[dict[str, Any]], every: int | None) -> Iterator[Finding]:
    """Where the rows are: one at each epoch's end, and inside them one after ``every`` so many steps."""
    epochs = [row["epoch"] for row in history if ends_epoch(row)]
    if not epochs or epochs != list(range(len(epochs))) or not ends_epoch(history[-1]):
        yield Finding("history", f"its epochs are {epochs}; they must count from 0 without a gap")
    steps = [row["step"] for row in history]
    if any(later <= earlier for earlier, later in pairwise(steps)):
        yield Finding("history", f"its steps are {steps}; each epoch must have made some")
    elif [row["step"] for row in history if not ends_epoch(row)] != _steps_inside(history, every):
        must = f"be those of each {every}" if every else "be none"
        yield Finding("history", f"its steps are {steps}; inside an epoch they must {must}")
    done = 0
    for row in history:
        if ends_epoch(row):
            done += 1
        elif row["epoch"] != done or not 0 < row[OF_EPOCH] < 1:
            yield Finding("history", f"{place_in_words(row)}, {row[OF_EPOCH]} of it: no place inside epoch {done + 1}")


def _steps_inside(history: list[dict[str, Any]], every: int | None) -> list[int]:
    """The steps after which a run must have validated inside an epoch."""
    ends = {row["step"] for row in history if ends_epoch(row)}
    return [step for step in range(every, history[-1]["step"], every) if step not in ends] if every and history else []


def _history(history: list[dict[str, Any]], objective: Learned) -> Iterator[Finding]:
    for row in history:
        for split in ("train", "validation"):
            for name in objective.monitors():
                column = MetricName(split, name).in_history
                about = f"history, {where(row)}, {column}"
                undefined = row.get(MetricName(split, UNDEFINED).in_history)
                yield from _in_range(about, objective.figure(name), row[column], undefined)


def where(row: Mapping[str, Any]) -> str:
    """``epoch 1``, from 0 as in the file; inside an epoch with the step."""
    return f"epoch {row['epoch']}" + ("" if ends_epoch(row) else f", step {row['step']}")


def _in_range(about: str, figure: Figure, value: Any, undefined: Mapping[str, str] | None) -> Iterator[Finding]:
    """Whether a figure is a number within its bounds, or undefined for a reason that is said."""
    reasons = undefined or {}
    if value is None:
        if figure.name not in reasons:
            yield Finding(about, "is null, and no reason is given why it would be undefined")
    elif figure.name in reasons:
        yield Finding(about, f"is {value}, and yet said to be {reasons[figure.name]}")
    elif figure.low is not None or figure.high is not None:
        low, high = -math.inf if figure.low is None else figure.low, math.inf if figure.high is None else figure.high
        lost = isinstance(value, float) and not math.isfinite(value) and math.inf in (-low, high)  # as a loss can be
        if not (isinstance(value, int | float) and (lost or low <= value <= high)):
            span = f"between {low:g} and {high:g}" if math.isfinite(high) else f"at least {low:g}"
            yield Finding(about, f"{value} is not {span}")


def _split(record: dict[str, Any], split: str, objective: Learned) -> Iterator[Finding]:
    """The figures of one split, against each other and against what the record says of its rows."""
    metrics = record["metrics"][split]
    for name in objective.every_epoch():
        about = MetricName(split, name).in_record
        yield from _in_range(about, objective.figure(name), metrics[name], metrics.get(UNDEFINED))
    for task, one in objective.tasks().items():
        own = metrics["tasks"][task]
        for name in one.every_epoch():
            about = MetricName(split, name, task).in_record
            yield from _in_range(about, one.figure(name), own[name], own.get(UNDEFINED))
    for key, said in objective.contradictions(metrics, record["data"], split):
        yield Finding(MetricName(split, key).in_record, said)


def _before(record: dict[str, Any], objective: Learned) -> Iterator[Finding]:
    """The figures of the untrained model, where the config asks for them."""
    asked, found = record["config"]["trainer"].get("measure_before", False), record.get("before")
    if asked != (found is not None):
        said = "is not there, and the config asks for it" if asked else "is there, and the config does not ask for it"
        yield Finding("before", said)
    if found is None:
        return
    figures = found["test"]
    for name in objective.every_epoch():
        yield from _in_range(f"before.test.{name}", objective.figure(name), figures[name], figures.get(UNDEFINED))
    for key, said in objective.contradictions(figures, record["data"], "test"):
        yield Finding(f"before.test.{key}", said)
    if figures["rows"] != record["data"]["rows"]["test"]:
        yield Finding("before.test.rows", f"{figures['rows']}, but the split has {record['data']['rows']['test']}")


def _selection(record: dict[str, Any], trainer: TrainerConfig, objective: Learned) -> Iterator[Finding]:
    chosen, history = record["selection"], record["history"]
    figure = monitored(trainer, objective)
    monitor = MetricName("validation", figure.name).in_history
    best = history[-1] if trainer.select == "last" else best_row(history, figure)
    expected = selected(best, trainer, objective)
    rule = expected["rule"]
    if chosen["rule"] != rule:
        yield Finding("selection.rule", f"'{chosen['rule']}', but the config's is '{rule}'")
    row = selected_row(record) if {"epoch", "step"} & {*chosen} == {"epoch", "step"} & {*expected} else None
    if row is None:
        place = {name: chosen[name] for name in ("epoch", "step") if name in chosen}
        yield Finding("selection.epoch", f"{place} is not in the history")
        return
    for name in ("epoch", "step"):
        if chosen.get(name) != expected.get(name):
            said = f"{chosen[name]}, but by its rule ({rule}) the history gives {name} {expected[name]}"
            yield Finding(f"selection.{name}", said)
    if not same(chosen[monitor], row[monitor]):
        yield Finding(f"selection.{monitor}", f"{chosen[monitor]}, but the history has {row[monitor]}")
    for split in ("train", "validation"):
        for name in objective.monitors():
            task, figure_name = task_and_figure(name)
            metric, figures = MetricName(split, figure_name, task), record["metrics"][split]
            value = (figures if task is None else figures["tasks"][task])[figure_name]
            if not same(value, row[metric.in_history]):
                said = f"{value}, but the history has {row[metric.in_history]} in the chosen {where(row)}"
                yield Finding(metric.in_record, said)


def _timing(record: dict[str, Any]) -> Iterator[Finding]:
    """Times and rates; the history of a resumed run holds the epochs of every attempt."""
    timing, history = record["timing"], record["history"]
    seconds = sum(row["train_seconds"] for row in history)
    expected = {
        "train_seconds": seconds,
        "train_samples_per_second": sum(row["train_rows"] for row in history) / max(seconds, 1e-9),
        "evaluation_samples_per_second": record["data"]["rows"]["test"] / max(timing["test_seconds"], 1e-9),
    }
    hours = seconds * record["processes"] / 3600 if "processes" in record else None
    if hours is not None and "hours_of" in timing:
        on_gpu = timing["cpu_hours"] is None
        expected |= {"gpu_hours": hours} if on_gpu else {"cpu_hours": hours * timing["threads"]}
    for name, value in expected.items():
        if not math.isclose(timing[name], value, rel_tol=1e-9):
            yield Finding(f"timing.{name}", f"{timing[name]}, but the epochs, the rows and the test give {value}")


def _frozen(backbone: dict[str, Any]) -> Iterator[Finding]:
    if (said := backbone.get("frozen_unchanged", True)) is not True:
        yield Finding(
            "backbone.frozen_unchanged",
            f"{json.dumps(said)}, but a run that changed weights which do not train writes no result",
        )


def _rows(record: dict[str, Any]) -> Iterator[Finding]:
    rows = record["data"]["rows"]
    if record["metrics"]["test"]["rows"] != rows["test"]:
        yield Finding(
            MetricName("test", "rows").in_record,
            f"{record['metrics']['test']['rows']} rows were tested; the split has {rows['test']}",
        )
    for split, by_label in record["data"].get("rows_by_label", {}).items():
        if (total := sum(by_label.values())) != rows[split]:
            yield Finding(f"data.rows.{split}", f"{rows[split]}, but the rows by label add up to {total}")
