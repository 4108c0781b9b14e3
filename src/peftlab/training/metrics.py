"""Classification metrics over a split, correct across processes and batches of unequal size."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torchmetrics import MeanMetric, SumMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score


class ClassificationMetrics(nn.Module):
    """Loss, accuracy, macro-F1 and, for each class, recall and F1."""

    def __init__(self, num_labels: int) -> None:
        super().__init__()
        self.loss = MeanMetric()
        self.rows = SumMetric()
        self.accuracy = MulticlassAccuracy(num_labels, average="micro")
        self.macro_f1 = MulticlassF1Score(num_labels, average="macro")
        self.recall = MulticlassAccuracy(num_labels, average=None)
        self.f1 = MulticlassF1Score(num_labels, average=None)

    def update(self, logits: Tensor, labels: Tensor, loss: Tensor) -> None:
        """Add a batch: ``logits`` (B, C), ``labels`` (B,), ``loss`` the batch's mean."""
        self.loss.update(loss, weight=len(labels))
        self.rows.update(len(labels))
        predictions = logits.argmax(dim=-1)
        for metric in (self.accuracy, self.macro_f1, self.recall, self.f1):
            metric.update(predictions, labels)

    def finish(self) -> dict[str, Any]:
        """The values over everything seen in all processes, as plain numbers; then start anew."""
        values = {
            "loss": float(self.loss.compute()),
            "accuracy": float(self.accuracy.compute()),
            "macro_f1": float(self.macro_f1.compute()),
            "per_class": {"accuracy": self.recall.compute().tolist(), "f1": self.f1.compute().tolist()},
            "rows": int(self.rows.compute()),
        }
        for metric in (self.loss, self.rows, self.accuracy, self.macro_f1, self.recall, self.f1):
            metric.reset()
        return values
