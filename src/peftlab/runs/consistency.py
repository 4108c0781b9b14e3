"""Whether the figures of a record agree with each other: what can be checked with the record alone.

Counts of right answers are whole numbers, so that accuracy, recall and F1 of one test determine each other: a figure
that was changed by hand no longer fits the rest. Imports no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from peftlab.training.config import MODES, TrainerConfig, selection_rule
from peftlab.training.confusion import matthews


@dataclass(frozen=True)
class Finding:
    """One thing that is not as a record says, or that could not be checked."""

    about: str
    """The file or the key: ``adapter.safetensors``, ``metrics.test.accuracy``."""
    said: str
    """What is there, and what should be."""

    def __str__(self) -> str:
        return f"{self.about}: {self.said}"


def inconsistencies(record: dict[str, Any], trainer: TrainerConfig) -> Iterator[Finding]:
    """Every figure of a finished ``record`` that contradicts another one.

    Args:
        record: of the known schema version.
        trainer: the run's checked ``trainer`` group, which holds the rule of selection.
    """
    yield from _seeds(record)
    yield from _history(record["history"])
    yield from _selection(record, trainer)
    yield from _rows(record)
    yield from _split("metrics.validation", record, "validation")
    yield from _split("metrics.test", record, "test")
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


def _history(history: list[dict[str, Any]]) -> Iterator[Finding]:
    epochs = [row["epoch"] for row in history]
    if not history or epochs != list(range(len(history))):
        yield Finding("history", f"its epochs are {epochs}; they must count from 0 without a gap")
    steps = [row["step"] for row in history]
    if any(later <= earlier for earlier, later in pairwise(steps)):
        yield Finding("history", f"its steps are {steps}; each epoch must have made some")
    for row in history:
        for name in ("train/accuracy", "train/macro_f1", "validation/accuracy", "validation/macro_f1"):
            yield from _share(f"history, epoch {row['epoch']}, {name}", row[name])


def _share(about: str, value: Any) -> Iterator[Finding]:
    if not (isinstance(value, int | float) and 0 <= value <= 1):
        yield Finding(about, f"{value} is not between 0 and 1")


def _selection(record: dict[str, Any], trainer: TrainerConfig) -> Iterator[Finding]:
    chosen, history = record["selection"], record["history"]
    if chosen["rule"] != (rule := selection_rule(trainer)):
        yield Finding("selection.rule", f"'{chosen['rule']}', but the config's is '{rule}'")
    row = next((row for row in history if row["epoch"] == chosen["epoch"]), None)
    if row is None:
        yield Finding("selection.epoch", f"{chosen['epoch']} is not in the history")
        return
    monitor = f"validation/{trainer.monitor}"
    best = _best_epoch(history, trainer)
    if chosen["epoch"] != best:
        yield Finding("selection.epoch", f"{chosen['epoch']}, but by its rule ({rule}) the history gives epoch {best}")
    if not same(chosen[monitor], row[monitor]):
        yield Finding(f"selection.{monitor}", f"{chosen[monitor]}, but the history has {row[monitor]}")
    for split in ("train", "validation"):
        for name in ("loss", "accuracy", "macro_f1"):
            value, expected = record["metrics"][split][name], row[f"{split}/{name}"]
            if not same(value, expected):
                yield Finding(
                    f"metrics.{split}.{name}",
                    f"{value}, but the history has {expected} in the chosen epoch {row['epoch']}",
                )


def _best_epoch(history: list[dict[str, Any]], trainer: TrainerConfig) -> int:
    """The epoch the rule chooses: of equals the first."""
    if trainer.select == "last":
        return int(history[-1]["epoch"])
    choose = max if MODES[trainer.monitor] == "max" else min
    compared = [row for row in history if not math.isnan(row[f"validation/{trainer.monitor}"])] or history[:1]
    return int(choose(compared, key=lambda row: row[f"validation/{trainer.monitor}"])["epoch"])


def _timing(record: dict[str, Any]) -> Iterator[Finding]:
    """Times and rates; the history of a resumed run holds the epochs of every attempt."""
    timing, history = record["timing"], record["history"]
    seconds = sum(row["train_seconds"] for row in history)
    expected = {
        "train_seconds": seconds,
        "train_samples_per_second": sum(row["train_rows"] for row in history) / max(seconds, 1e-9),
        "evaluation_samples_per_second": record["data"]["rows"]["test"] / max(timing["test_seconds"], 1e-9),
    }
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
            "metrics.test.rows", f"{record['metrics']['test']['rows']} rows were tested; the split has {rows['test']}"
        )
    for split, by_label in record["data"].get("rows_by_label", {}).items():
        if (total := sum(by_label.values())) != rows[split]:
            yield Finding(f"data.rows.{split}", f"{rows[split]}, but the rows by label add up to {total}")


def _split(about: str, record: dict[str, Any], split: str) -> Iterator[Finding]:
    """Accuracy, macro-F1 and the figures of each class of one split, against each other."""
    metrics, labels = record["metrics"][split], record["data"]["label_names"]
    for name in ("accuracy", "macro_f1"):
        yield from _share(f"{about}.{name}", metrics[name])
    recalls, f1s = metrics["per_class"]["accuracy"], metrics["per_class"]["f1"]
    if list(recalls) != labels or list(f1s) != labels:
        yield Finding(f"{about}.per_class", f"has the classes {', '.join(recalls)}; the data has {', '.join(labels)}")
        return
    counts = _rows_by_label(record["data"], split)
    if counts is None:
        return
    right = {name: recalls[name] * counts[name] for name in labels}
    if any(not math.isclose(value, round(value), abs_tol=1e-6) for value in right.values()):
        yield Finding(f"{about}.per_class.accuracy", "a share of right answers that no whole number of texts gives")
        return
    for name in labels:
        if not _possible_f1(f1s[name], right[name], counts[name]):
            yield Finding(f"{about}.per_class.f1.{name}", f"{f1s[name]} does not follow from any number of predictions")
    if "tasks" not in metrics:
        yield from _whole(about, metrics, labels, counts, right, f1s)
        if "matthews" in metrics:
            yield from _matthews(about, metrics["matthews"], labels, counts, right, f1s)
        return
    for (task, figures), own in zip(metrics["tasks"].items(), _labels_by_task(record["data"]), strict=True):
        yield from _whole(f"{about}.tasks.{task}", figures, own, counts, right, f1s)
    seen = [figures for figures in metrics["tasks"].values() if figures["rows"]]
    for name in ("loss", "accuracy", "macro_f1"):
        mean = sum(figures[name] for figures in seen) / max(1, len(seen))
        if not same(metrics[name], mean):
            yield Finding(f"{about}.{name}", f"{metrics[name]}, but the mean over the tasks is {mean}")


def _rows_by_label(data: dict[str, Any], split: str) -> dict[str, int] | None:
    """Class name → rows in ``split``, of all tasks if there are several; None if the record does not say."""
    parts = data["tasks"].values() if "tasks" in data else [data]
    numbers = [n for part in parts for n in part.get("rows_by_label", {}).get(split, {}).values()]
    return dict(zip(data["label_names"], numbers, strict=True)) if len(numbers) == len(data["label_names"]) else None


def _labels_by_task(data: dict[str, Any]) -> Iterator[list[str]]:
    """The classes of each task, which stand in the order of the tasks."""
    first = 0
    for part in data["tasks"].values():
        stop = first + len(part["label_names"])
        yield data["label_names"][first:stop]
        first = stop


def _whole(
    about: str,
    figures: dict[str, Any],
    labels: list[str],
    counts: dict[str, int],
    right: dict[str, float],
    f1s: dict[str, float],
) -> Iterator[Finding]:
    """Accuracy and macro-F1 over the classes ``labels``."""
    accuracy = sum(round(right[name]) for name in labels) / max(1, sum(counts[name] for name in labels))
    if figures["accuracy"] != accuracy:
        yield Finding(f"{about}.accuracy", f"{figures['accuracy']}, but the figures of each class give {accuracy}")
    # A class without texts occurs only among the predictions, or not at all; F1 is 0 either way.
    occurring = max(1, sum(counts[name] > 0 for name in labels))
    possible = [sum(f1s[name] for name in labels) / n for n in range(occurring, len(labels) + 1)]
    if not any(math.isclose(figures["macro_f1"], mean, rel_tol=1e-12) for mean in possible):
        yield Finding(f"{about}.macro_f1", f"{figures['macro_f1']}, but the mean over the classes is {possible[0]}")


def _matthews(
    about: str, found: float, labels: list[str], counts: dict[str, int], right: dict[str, float], f1s: dict[str, float]
) -> Iterator[Finding]:
    """Matthews correlation, where the predictions of each class follow from its F1."""
    predicted = {name: round(2 * right[name] / f1s[name]) - counts[name] for name in labels if f1s[name]}
    rows, unknown = sum(counts.values()), [name for name in labels if not f1s[name]]
    if len(unknown) > 1:
        return
    predicted |= {name: rows - sum(predicted.values()) for name in unknown}
    columns = [[of[name] for name in labels] for of in (counts, predicted)]
    expected = matthews(rows, sum(round(right[name]) for name in labels), *columns)
    if not same(found, expected):
        yield Finding(f"{about}.matthews", f"{found}, but the figures of each class give {expected}")


def _possible_f1(f1: float, right: float, texts: int) -> bool:
    """Whether F1 = 2·right / (texts of the class + predictions of it) for a whole number of predictions."""
    if not f1:
        return round(right) == 0
    predicted = 2 * right / f1 - texts
    return math.isclose(predicted, round(predicted), abs_tol=1e-5) and round(predicted) >= round(right)
