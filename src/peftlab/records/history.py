"""metrics.csv: one row a validation, and so at least one an epoch."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peftlab.files import write_atomically
from peftlab.metric_names import MetricName
from peftlab.reading import read_bytes
from peftlab.training.places import OF_EPOCH, ends_epoch


def columns_of(history: Sequence[Mapping[str, Any]]) -> list[str]:
    """The columns for a ``history``: where, figures of train, of validation, costs, then the figures of each task.

    That which says where inside an epoch a row is (:data:`~peftlab.training.places.OF_EPOCH`) only if one is.
    """
    if not history:
        return []
    row = history[0]
    names = {name: MetricName.from_history(name) for name, value in row.items() if not isinstance(value, dict)}
    metrics = {name: metric for name, metric in names.items() if metric is not None}
    whole = [
        name
        for split in ("train", "validation")
        for name, metric in metrics.items()
        if metric.split == split and metric.task is None
    ]
    of_tasks = [name for name, metric in metrics.items() if metric.task is not None]
    inside = [OF_EPOCH] if any(OF_EPOCH in row for row in history) else []
    return ["epoch", *inside, "step", "lr", *whole, "train_rows", "train_seconds", *of_tasks]


def write_metrics_csv(path: Path, history: list[dict[str, Any]]) -> None:
    """Write ``history`` with full precision, atomically; a figure that is undefined is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns_of(history), restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_atomically(path, text.getvalue())


def epochs_in(path: Path) -> int:
    """Whole epochs in the metrics.csv of a run that may still train; 0 if it cannot be read."""
    try:
        rows = csv.DictReader(io.StringIO(read_bytes(path).decode("utf-8", "replace"), newline=""))
        return sum(map(ends_epoch, rows))
    except (OSError, csv.Error):
        return 0
