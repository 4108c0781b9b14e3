"""The results table of a finished run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAVY
from rich.console import Console
from rich.table import Table


def console() -> Console:
    """A console as wide as the terminal, or 110 columns where there is none (a log file)."""
    wide = Console()
    return wide if wide.is_terminal else Console(width=110)


def add_tasks(table: Table, metrics: dict[str, Any], kinds: Mapping[str, str] | None = None) -> None:
    """A line for each task of ``metrics``, with the kind of its rows; none for data of one task.

    The line above them is their mean.
    """
    for name, figures in metrics.get("tasks", {}).items():
        table.add_row(
            f"  {name}: {kinds[name]}" if kinds and name in kinds else f"  {name}",
            f"{figures['rows']:,}",
            f"{figures['accuracy']:.4f}",
            f"{figures['macro_f1']:.4f}",
            f"{figures['loss']:.4f}",
        )


def print_result(path: Path, record: dict[str, Any]) -> None:
    """Print metrics, selection, size and speed from ``record``."""
    metrics, timing = record["metrics"], record["timing"]
    table = Table(box=SIMPLE_HEAVY)
    for column in ("split", "rows", "accuracy", "macro-F1", "loss"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for split in ("train", "validation", "test"):
        values = metrics[split]
        tasks = record["data"]["tasks"] if "tasks" in values else {}
        name = f"{split}, mean of the tasks" if tasks else split
        if split == "test" and not tasks:
            name = f"test: {record['data']['test_kind']}"
        table.add_row(
            name,
            f"{record['data']['rows'][split]:,}",
            f"{values['accuracy']:.4f}",
            f"{values['macro_f1']:.4f}",
            f"{values['loss']:.4f}",
        )
        if split != "train":
            kinds = {task: facts["test_kind"] for task, facts in tasks.items()} if split == "test" else {}
            add_tasks(table, values, kinds)
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
