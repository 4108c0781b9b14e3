"""metrics.csv: one row an epoch."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftlab.files import write_atomically


def columns_of(row: Mapping[str, Any]) -> list[str]:
    """The columns for ``row`` of a history: figures of train, of validation, costs, then the figures of each task."""
    figures = [name for name, value in row.items() if "/" in name and not isinstance(value, dict)]
    by_split = [name for split in ("train", "validation") for name in figures if name.startswith(f"{split}/")]
    whole = [name for name in by_split if name.count("/") == 1]
    return ["epoch", "step", "lr", *whole, "train_rows", "train_seconds", *(n for n in figures if n.count("/") == 2)]


def write_metrics_csv(path: Path, history: list[dict[str, Any]]) -> None:
    """Write ``history`` with full precision, atomically; a figure that is undefined is an empty cell."""
    text = io.StringIO()
    columns = columns_of(history[0]) if history else []
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_atomically(path, text.getvalue())
