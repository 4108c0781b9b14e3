"""The results table of a finished run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from peftlab.metric_names import SPLITS
from peftlab.objectives.base import Learned, shown
from peftlab.report.render.terminal import console, print_lines, print_table
from peftlab.report.table import Head, Table, plain_table
from peftlab.training.places import place_in_words
from peftlab.training.selection import selected_row


class FiguresTable:
    """Rows of figures under the titles of an objective, the loss last."""

    def __init__(self, objective: Learned) -> None:
        self._names = objective.shown_figures()
        titles = [objective.figure(name).title for name in self._names]
        self._heads = [Head("split"), *(Head(title, number=True) for title in ("rows", *titles))]
        self._lines: list[list[str]] = []

    @property
    def table(self) -> Table:
        """What was added."""
        return plain_table(self._heads, self._lines)

    def add(self, title: str, rows: int | None, values: Mapping[str, Any]) -> None:
        """A line; a figure that ``values`` lack leaves its cell empty."""
        cells = [shown(values[name]) if name in values else "" for name in self._names]
        self._lines.append([title, "" if rows is None else f"{rows:,}", *cells])

    def add_tasks(self, metrics: Mapping[str, Any], kinds: Mapping[str, str] | None = None) -> None:
        """A line for each task of ``metrics``, with the kind of its rows; none for data of one task.

        The line above them is their mean.
        """
        for name, figures in metrics.get("tasks", {}).items():
            title = f"  {name}: {kinds[name]}" if kinds and name in kinds else f"  {name}"
            self.add(title, figures["rows"], figures)


def undefined_lines(objective: Learned, split: str, values: Mapping[str, Any]) -> Iterator[str]:
    """Why figures of ``values`` are undefined: a line for each reason."""
    for why in dict.fromkeys(values.get("undefined", {}).values()):
        names = [objective.figure(name).title for name, said in values["undefined"].items() if said == why]
        yield f"{' and '.join(names)} on {split}: {why}"


def generated_lines(objective: Learned, split: str, values: Mapping[str, Any]) -> Iterator[str]:
    """What is said of the answers that a test has written: a line, if it has."""
    if (facts := values.get("generated")) is not None:
        of = [f for f in objective.figures if not f.each_epoch and f.name in values]
        said = ", ".join(f"{figure.title} {shown(values[figure.name])}" for figure in of)
        ended = f"{facts['ended']:,} ended by themselves"
        yield f"{split}: {said}; {facts['prompts']:,} answers were written, of which {ended}"


def print_result(path: Path, record: dict[str, Any], objective: Learned) -> None:
    """Print metrics, selection, size and speed from ``record``."""
    metrics, timing = record["metrics"], record["timing"]
    figures = FiguresTable(objective)
    for split in SPLITS:
        values = metrics[split]
        tasks = record["data"]["tasks"] if "tasks" in values else {}
        name = f"{split}, mean of the tasks" if tasks else split
        if split == "test" and not tasks:
            name = f"test: {record['data']['test_kind']}"
        figures.add(name, record["data"]["rows"][split], values)
        if split != "train":
            kinds = {task: facts["test_kind"] for task, facts in tasks.items()} if split == "test" else {}
            figures.add_tasks(values, kinds)
    if (before := record.get("before")) is not None:
        figures.add("test, before training", record["data"]["rows"]["test"], before["test"])
    selection, row = record["selection"], selected_row(record)
    assert row is not None
    out = console()
    print_table(out, figures.table)
    for split, values in metrics.items():
        print_lines(out, undefined_lines(objective, split, values))
        print_lines(out, generated_lines(objective, split, values))
    if before is not None:
        print_lines(out, generated_lines(objective, "test, before training", before["test"]))
    about = (
        f"weights of {place_in_words(row)} ({selection['rule']}); "
        f"{record['parameters']['trainable']:,} trainable parameters; "
        f"adapter {record['parameters']['adapter_bytes']:,} bytes; "
        f"trained {timing['train_seconds']:.0f} s at {timing['train_samples_per_second']:.1f} samples/s; "
        f"peak memory {record['memory']['peak_mib']:.0f} MiB"
    )
    print_lines(out, [about])
    out.print(str(path), highlight=False, soft_wrap=True)  # alone, and whole: to be copied
    print_lines(out, ["  record.json, metrics.csv, curves.png, adapter.safetensors"])
