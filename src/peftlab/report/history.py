"""metrics.csv: one row an epoch."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from peftlab.files import write_atomically

COLUMNS = (
    "epoch", "step", "lr", "train/loss", "train/accuracy", "train/macro_f1",
    "validation/loss", "validation/accuracy", "validation/macro_f1", "train_rows", "train_seconds",
)  # fmt: skip


def write_metrics_csv(path: Path, history: list[dict[str, Any]]) -> None:
    """Write ``history`` with full precision, atomically; the figures of each task of several stand at the end."""
    text = io.StringIO()
    of_tasks = [name for name in (history[0] if history else ()) if name.count("/") == 2]
    writer = csv.DictWriter(text, [*COLUMNS, *of_tasks], extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_atomically(path, text.getvalue())
