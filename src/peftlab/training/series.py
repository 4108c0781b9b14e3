"""What loggers see of a step beside its loss: learning rate, size of the gradient, speed and memory.

Bookkeeping: reading changes no number. It is read at the steps that are logged only, since on a GPU each look waits.
"""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from peftlab.metric_names import MetricName


class StepSeries:
    """Counts rows from one logged step to the next."""

    def __init__(self) -> None:
        self._rows: int | Tensor = 0
        self._since: float | None = None

    def count(self, labels: Any) -> None:
        """Add the rows of a batch: of packed texts, their number."""
        if self._since is None:
            self._since = time.perf_counter()
        texts = getattr(labels, "texts", None)
        self._rows = self._rows + (len(labels) if texts is None else texts.sum())

    def of(self, optimizer: Optimizer, device: torch.device) -> dict[str, float]:
        """The values of a step whose gradients are there and not yet clipped, and begin to count anew.

        ``lr`` is the first group's; ``gradient_norm`` L2 over all that trains; ``samples_per_second`` of this process
        since the last call; ``memory_mib`` what the GPU holds for it, or else what is resident.
        """
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        values = {
            "lr": float(optimizer.param_groups[0]["lr"]),
            "gradient_norm": float(torch.nn.utils.get_total_norm(gradients)),
            "memory_mib": torch.cuda.memory_allocated(device) / 2**20 if device.type == "cuda" else _resident_mib(),
        }
        now, rows = time.perf_counter(), int(self._rows)
        if self._since is not None and now > self._since and rows:
            values["samples_per_second"] = rows / (now - self._since)
        self._rows, self._since = 0, now
        return {MetricName("train", name).in_history: value for name, value in values.items()}

    def pause(self) -> None:
        """Validation is no time of training: count anew."""
        self._rows, self._since = 0, None


def _resident_mib() -> float:
    """Of this process now, by Linux; elsewhere the most there was."""
    statm = Path("/proc/self/statm")
    if statm.is_file():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
