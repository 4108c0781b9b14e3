"""Several tasks in one model: a head for each of them, their losses and their figures.

The head's last linear layer has a row for every class of every task. A row of a batch is scored by its own task's
block of them alone: the logits z of all other classes are -inf before softmax, loss, metrics and predictions.

    p(c | x, k) = exp z_c / Σ_{c' in task k} exp z_c'        c in task k

So the tasks' output layers share nothing: a block has no gradient from other tasks' rows. A head that is one linear
layer (BERT's, GPT-2's, Llama's classifier) *is* a head for each task. What a head has before its last layer is shared
by all tasks, as the trunk is: RoBERTa's dense layer, DistilBERT's pre_classifier, DeBERTa's pooler, and BERT's pooler
where it is new.

Training minimises the mean over a batch's rows, so that a task weighs as much as it has rows (``data.mixing``).
Figures of all tasks together are unweighted means of the tasks' figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric

from peftlab.metric_names import MetricName
from peftlab.objectives.base import objective
from peftlab.objectives.parts.confusion import from_confusion
from peftlab.objectives.parts.split import SplitMetrics
from peftlab.objectives.parts.task import Task

FIGURES = ("loss", "accuracy", "macro_f1")
"""What is averaged over tasks."""


class TaskBlocks(nn.Module):
    """Which classes are whose."""

    own: Tensor
    """(tasks, C) bool: whether a class is of a task."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        own = torch.zeros(len(tasks), tasks[-1].stop, dtype=torch.bool)
        for number, task in enumerate(tasks):
            own[number, task.first : task.stop] = True
        self.register_buffer("own", own, persistent=False)

    def masked(self, logits: Tensor, task_ids: Tensor) -> Tensor:
        """``logits`` (B, C) with -inf for the classes that are not of a row's task, ``task_ids`` (B,)."""
        return logits.masked_fill(~self.own[task_ids], -torch.inf)

    def losses(self, masked: Tensor, labels: Tensor, task_ids: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Cross-entropy of each row (B,) among its own task's classes.

        Args:
            masked: what :meth:`masked` returned.
            labels: (B,), counted through all classes.
            task_ids: (B,).
            label_smoothing: share of the target that is spread over the classes of the row's task.
        """
        if label_smoothing == 0:
            return F.cross_entropy(masked, labels, reduction="none")
        own = self.own[task_ids]  # (B, C)
        log_p = F.log_softmax(masked, dim=-1).masked_fill(~own, 0.0)
        target = -log_p.gather(1, labels.unsqueeze(1)).squeeze(1)
        return (1 - label_smoothing) * target - label_smoothing * log_p.sum(dim=-1) / own.sum(dim=-1)


class TaskLosses(Metric):
    """Mean loss of each task's rows, over all processes."""

    full_state_update = False
    total: Tensor
    rows: Tensor

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(tasks), dist_reduce_fx="sum")
        self.add_state("rows", torch.zeros(tasks), dist_reduce_fx="sum")

    def update(self, losses: Tensor, task_ids: Tensor) -> None:
        """Add rows: their ``losses`` (B,) and tasks (B,)."""
        self.total.index_put_((task_ids,), losses.to(self.total), accumulate=True)
        numbers = torch.arange(len(self.rows), device=task_ids.device)
        self.rows += (task_ids[:, None] == numbers).sum(dim=0)  # bincount waits for the device

    def compute(self) -> Tensor:
        """(tasks,), 0 for a task without rows."""
        return self.total / self.rows.clamp(min=1)


class MultitaskMetrics(SplitMetrics):
    """Figures of each task over its own classes, and their means.

    ``compute()`` has ``tasks``: name to ``loss``, ``accuracy``, ``macro_f1``, ``rows``. The figures beside it are the
    unweighted means over the tasks that have rows, and ``rows`` is their sum.
    """

    task_of_class: Tensor

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__(objective("classification"), [""] * tasks[-1].stop)
        self.tasks = tuple(tasks)
        self.losses = TaskLosses(len(tasks))
        task_of_class = torch.tensor([number for number, task in enumerate(tasks) for _ in task.classes])
        self.register_buffer("task_of_class", task_of_class, persistent=False)

    def update(self, outputs: Tensor, labels: Tensor, loss: Tensor, weight: int | None = None) -> None:
        """Add a batch: masked ``outputs`` (B, C), ``labels`` (B,), ``loss`` of each row (B,)."""
        self.losses.update(loss, self.task_of_class[labels])
        super().update(outputs, labels, loss.mean())

    def compute(self) -> dict[str, Any]:
        """See the class; then start anew."""
        # Masked logits predict none of another task's classes: the matrix is made of the tasks' blocks.
        counts: list[list[int]] = self.states["confusion"].compute().tolist()  # type: ignore[operator]
        losses = self.losses.compute().tolist()
        self.losses.reset()
        found = super().compute()
        del found["matthews"]  # of classes that no row could be given
        tasks = {}
        for task, loss in zip(self.tasks, losses, strict=True):
            figures = from_confusion([row[task.first : task.stop] for row in counts[task.first : task.stop]])
            tasks[task.name] = {"loss": loss} | {name: figures[name] for name in ("accuracy", "macro_f1", "rows")}
        seen = [figures for figures in tasks.values() if figures["rows"]]
        means = {name: sum(figures[name] for figures in seen) / max(1, len(seen)) for name in FIGURES}
        return found | means | {"tasks": tasks}


def by_task(values: dict[str, Any], split: str) -> dict[MetricName, float | None]:
    """Metric of a task to number, None if undefined, of what ``compute()`` returned; nothing for data of one task."""
    return {
        MetricName(split, name, task): number
        for task, figures in values.get("tasks", {}).items()
        for name, number in figures.items()
        if not isinstance(number, dict)
    }
