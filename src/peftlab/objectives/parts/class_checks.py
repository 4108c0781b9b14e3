"""What the figures of a classification in a record say of each other.

Counts of right answers are whole numbers, so that accuracy, recall and F1 of one test determine each other: a figure
that was changed by hand no longer fits the rest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from peftlab.objectives.base import Contradiction
from peftlab.objectives.parts.confusion import matthews


def contradictions(metrics: Mapping[str, Any], data: Mapping[str, Any], split: str) -> Iterator[Contradiction]:
    """See :meth:`peftlab.objectives.base.Objective.contradictions`."""
    labels = data["label_names"]
    recalls, f1s = metrics["per_class"]["accuracy"], metrics["per_class"]["f1"]
    if list(recalls) != labels or list(f1s) != labels:
        yield ("per_class", f"has the classes {', '.join(recalls)}; the data has {', '.join(labels)}")
        return
    counts = _rows_by_label(data, split)
    if counts is None:
        return
    right = {name: recalls[name] * counts[name] for name in labels}
    if any(not math.isclose(value, round(value), abs_tol=1e-6) for value in right.values()):
        yield ("per_class.accuracy", "a share of right answers that no whole number of texts gives")
        return
    for name in labels:
        if not _possible_f1(f1s[name], right[name], counts[name]):
            yield (f"per_class.f1.{name}", f"{f1s[name]} does not follow from any number of predictions")
    if "tasks" not in metrics:
        yield from _whole("", metrics, labels, counts, right, f1s)
        if "matthews" in metrics:
            yield from _matthews(metrics["matthews"], labels, counts, right, f1s)
        return
    for (task, figures), own in zip(metrics["tasks"].items(), _labels_by_task(data), strict=True):
        yield from _whole(f"tasks.{task}.", figures, own, counts, right, f1s)
    seen = [figures for figures in metrics["tasks"].values() if figures["rows"]]
    for name in ("loss", "accuracy", "macro_f1"):
        mean = sum(figures[name] for figures in seen) / max(1, len(seen))
        if not _same(metrics[name], mean):
            yield (name, f"{metrics[name]}, but the mean over the tasks is {mean}")


def _same(first: Any, second: Any) -> bool:
    """Equal to the bit, and NaN equal to NaN."""
    return repr(first) == repr(second) or bool(first == second)


def _rows_by_label(data: Mapping[str, Any], split: str) -> dict[str, int] | None:
    """Class name → rows in ``split``, of all tasks if there are several; None if the record does not say."""
    parts = data["tasks"].values() if "tasks" in data else [data]
    numbers = [n for part in parts for n in part.get("rows_by_label", {}).get(split, {}).values()]
    return dict(zip(data["label_names"], numbers, strict=True)) if len(numbers) == len(data["label_names"]) else None


def _labels_by_task(data: Mapping[str, Any]) -> Iterator[list[str]]:
    """The classes of each task, which stand in the order of the tasks."""
    first = 0
    for part in data["tasks"].values():
        stop = first + len(part["label_names"])
        yield data["label_names"][first:stop]
        first = stop


def _whole(
    prefix: str,
    figures: Mapping[str, Any],
    labels: list[str],
    counts: dict[str, int],
    right: dict[str, float],
    f1s: dict[str, float],
) -> Iterator[Contradiction]:
    """Accuracy and macro-F1 over the classes ``labels``."""
    accuracy = sum(round(right[name]) for name in labels) / max(1, sum(counts[name] for name in labels))
    if figures["accuracy"] != accuracy:
        yield (f"{prefix}accuracy", f"{figures['accuracy']}, but the figures of each class give {accuracy}")
    # A class without texts occurs only among the predictions, or not at all; F1 is 0 either way.
    occurring = max(1, sum(counts[name] > 0 for name in labels))
    possible = [sum(f1s[name] for name in labels) / n for n in range(occurring, len(labels) + 1)]
    if not any(math.isclose(figures["macro_f1"], mean, rel_tol=1e-12) for mean in possible):
        yield (f"{prefix}macro_f1", f"{figures['macro_f1']}, but the mean over the classes is {possible[0]}")


def _matthews(
    found: float, labels: list[str], counts: dict[str, int], right: dict[str, float], f1s: dict[str, float]
) -> Iterator[Contradiction]:
    """Matthews correlation, where the predictions of each class follow from its F1."""
    predicted = {name: round(2 * right[name] / f1s[name]) - counts[name] for name in labels if f1s[name]}
    rows, unknown = sum(counts.values()), [name for name in labels if not f1s[name]]
    if len(unknown) > 1:
        return
    predicted |= {name: rows - sum(predicted.values()) for name in unknown}
    columns = [[of[name] for name in labels] for of in (counts, predicted)]
    expected = matthews(rows, sum(round(right[name]) for name in labels), *columns)
    if not _same(found, expected):
        yield ("matthews", f"{found}, but the figures of each class give {expected}")


def _possible_f1(f1: float, right: float, texts: int) -> bool:
    """Whether F1 = 2·right / (texts of the class + predictions of it) for a whole number of predictions."""
    if not f1:
        return round(right) == 0
    predicted = 2 * right / f1 - texts
    return math.isclose(predicted, round(predicted), abs_tol=1e-5) and round(predicted) >= round(right)
