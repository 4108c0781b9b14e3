"""metrics.csv: one row an epoch."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftlab.files import write_atomically
from peftlab.metric_names import MetricName


def columns_of(row: Mapping[str, Any]) -> list[str]:
    """The columns for ``row`` of a history: figures of train, of validation, costs, then the figures of each task."""
    names = {name: MetricName.from_history(name) for name, value in row.items() if not isinstance(value, dict)}
    metrics = {name: metric for name, metric in names.items() if metric is not None}
    whole = [
        name
        for split in ("train", "validation")
        for name, metric in metrics.items()
        if metric.split == split and metric.task is None
    ]
    of_tasks = [name for name, metric in metrics.items() if metric.task is not None]
    return ["epoch", "step", "lr", *whole, "train_rows", "train_seconds", *of_tasks]


def write_metrics_csv(path: Path, history: list[dict[str, Any]]) -> None:
    """Write ``history`` with full precision, atomically; a figure that is undefined is an empty cell."""
    text = io.StringIO()
    columns = columns_of(history[0]) if history else []
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_atomically(path, text.getvalue())
