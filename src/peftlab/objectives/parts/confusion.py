"""The figures of a classification, from its confusion matrix. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def from_confusion(counts: list[list[int]]) -> dict[str, Any]:
    """Accuracy, macro-F1, Matthews correlation, recall and F1 of each class, from ``counts[true][predicted]``.

    F1 of a class is 2·tp / (2·tp + fp + fn); macro-F1 is its mean over the classes that occur, among the labels
    or the predictions. A class that does not occur has recall and F1 of 0.

    Matthews correlation is that of any number of classes (Gorodkin 2004): with s rows, c right ones, t_k rows and p_k
    predictions of class k, (c·s - Σ p_k t_k) / √((s² - Σ p_k²)(s² - Σ t_k²)); 0 where only one class occurs or is
    predicted.
    """
    classes = range(len(counts))
    true = [sum(counts[c]) for c in classes]
    predicted = [sum(row[c] for row in counts) for c in classes]
    f1 = [2 * counts[c][c] / max(1, true[c] + predicted[c]) for c in classes]
    occurring = [c for c in classes if true[c] + predicted[c]]
    rows, right = sum(true), sum(counts[c][c] for c in classes)
    return {
        "accuracy": right / max(1, rows),
        "macro_f1": sum(f1[c] for c in occurring) / max(1, len(occurring)),
        "per_class": {"accuracy": [counts[c][c] / max(1, true[c]) for c in classes], "f1": f1},
        "matthews": matthews(rows, right, true, predicted),
        "rows": rows,
    }


def matthews(rows: int, right: int, true: Sequence[int], predicted: Sequence[int]) -> float:
    """The correlation, from rows and predictions of each class; see :func:`from_confusion`."""
    covariance = right * rows - sum(p * t for p, t in zip(predicted, true, strict=True))
    spread = (rows**2 - sum(p * p for p in predicted)) * (rows**2 - sum(t * t for t in true))
    return covariance / math.sqrt(spread) if spread else 0.0
