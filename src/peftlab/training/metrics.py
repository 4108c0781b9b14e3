"""Classification metrics over a split, correct across processes and batches of unequal size."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassConfusionMatrix

from peftlab.training.confusion import from_confusion


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
