"""The results table of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAVY
from rich.console import Console
from rich.table import Table


def console() -> Console:
    """A console as wide as the terminal, or 110 columns where there is none (a log file)."""
    wide = Console()
    return wide if wide.is_terminal else Console(width=110)


def print_result(path: Path, record: dict[str, Any]) -> None:
    """Print metrics, selection, size and speed from ``record``."""
    metrics, timing = record["metrics"], record["timing"]
    table = Table(box=SIMPLE_HEAVY)
    for column in ("split", "rows", "accuracy", "macro-F1", "loss"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for split in ("train", "validation", "test"):
        values = metrics[split]
        name = f"test: {record['data']['test_kind']}" if split == "test" else split
        table.add_row(
            name,
            f"{record['data']['rows'][split]:,}",
            f"{values['accuracy']:.4f}",
            f"{values['macro_f1']:.4f}",
            f"{values['loss']:.4f}",
        )
    selection = record["selection"]
    out = console()
    out.print(table)
    out.print(
        f"weights of epoch {selection['epoch'] + 1} ({selection['rule']}); "
        f"{record['parameters']['trainable']:,} trainable parameters; "
        f"adapter {record['parameters']['adapter_bytes']:,} bytes; "
        f"trained {timing['train_seconds']:.0f} s at {timing['train_samples_per_second']:.1f} samples/s; "
        f"peak memory {record['memory']['peak_mib']:.0f} MiB",
        highlight=False,
    )
    out.print(f"{path}/: record.json, metrics.csv, curves.png, adapter.safetensors", highlight=False, soft_wrap=True)
