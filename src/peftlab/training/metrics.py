"""Classification metrics over a split, correct across processes and batches of unequal size."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassConfusionMatrix


class ClassificationMetrics(nn.Module):
    """Loss, and the counts that every other figure follows from.

    Counts are whole numbers, so the figures are exact quotients and do not depend on batch sizes or on the
    number of processes.
    """

    def __init__(self, num_labels: int) -> None:
        super().__init__()
        self.loss = MeanMetric()
        self.confusion = MulticlassConfusionMatrix(num_labels)

    def update(self, logits: Tensor, labels: Tensor, loss: Tensor) -> None:
        """Add a batch: ``logits`` (B, C), ``labels`` (B,), ``loss`` the batch's mean."""
        self.loss.update(loss, weight=len(labels))
        self.confusion.update(logits.argmax(dim=-1), labels)

    def finish(self) -> dict[str, Any]:
        """The values over everything seen in all processes, as plain numbers; then start anew."""
        values = {"loss": float(self.loss.compute()), **from_confusion(self.confusion.compute().tolist())}
        self.loss.reset()
        self.confusion.reset()
        return values


def from_confusion(counts: list[list[int]]) -> dict[str, Any]:
    """Accuracy, macro-F1, and recall and F1 of each class, from ``counts[true][predicted]``.

    F1 of a class is 2·tp / (2·tp + fp + fn); macro-F1 is its mean over the classes that occur, among the labels
    or the predictions. A class that does not occur has recall and F1 of 0.
    """
    classes = range(len(counts))
    true = [sum(counts[c]) for c in classes]
    predicted = [sum(row[c] for row in counts) for c in classes]
    f1 = [2 * counts[c][c] / max(1, true[c] + predicted[c]) for c in classes]
    occurring = [c for c in classes if true[c] + predicted[c]]
    rows = sum(true)
    return {
        "accuracy": sum(counts[c][c] for c in classes) / max(1, rows),
        "macro_f1": sum(f1[c] for c in occurring) / max(1, len(occurring)),
        "per_class": {"accuracy": [counts[c][c] / max(1, true[c]) for c in classes], "f1": f1},
        "rows": rows,
    }
