"""The table of a declared sweep, from records only: mean ± standard deviation over seeds, as Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import mean, stdev
from typing import Any

from peftlab.errors import ConfigError
from peftlab.sweeps.declaration import Cell, Column, Sweep

Records = Mapping[tuple[str, int], Mapping[str, Any]]
"""Cell and seed → record."""


@dataclass(frozen=True)
class Figure:
    """The values of one cell in one column, a seed each."""

    values: tuple[float, ...]
    seeds: int
    """Seeds that the sweep declares."""

    def text(self, form: str) -> str:
        """As the table prints it; a figure that lacks seeds says how many it has."""
        if not self.values:
            return "–"
        if form == "count":
            low, high = round(min(self.values)), round(max(self.values))
            shown = f"{low:,}" if low == high else f"{low:,} … {high:,}"
        elif form == "seconds":
            shown = f"{mean(self.values):.1f}"
        elif not all(isfinite(value) for value in self.values):
            shown = "not finite"
        else:
            sign = "+" if form == "difference" else ""
            shown = f"{mean(self.values):{sign}.4f}"
            if form == "difference" and not any(self.values):
                shown = "0 (exactly)"
            elif len(self.values) > 1:
                shown += f" ± {stdev(self.values):.4f}"
        return shown if len(self.values) == self.seeds else f"{shown} ({len(self.values)}/{self.seeds} seeds)"


def value_of(record: Mapping[str, Any], path: str) -> float | None:
    """The number at ``path`` (``metrics.test.accuracy``); None where the record says there is none.

    Raises:
        ConfigError: if records have no such place.
    """
    found: Any = record
    for part in path.split("."):
        if found is None:
            return None
        if not isinstance(found, Mapping) or part not in found:
            raise ConfigError(f"no record has a value at '{path}': there is no '{part}'.")
        found = found[part]
    if found is not None and (isinstance(found, bool) or not isinstance(found, int | float)):
        raise ConfigError(f"the value at '{path}' is no number: {found!r}.")
    return found


def figure(sweep: Sweep, cell: Cell, column: Column, records: Records) -> Figure:
    """What ``cell`` has in ``column``; empty where it does not apply."""
    found = [value_of(record, column.value) for seed in sweep.seeds if (record := records.get((cell.id, seed)))]
    return Figure(tuple(value for value in found if value is not None), len(sweep.seeds))


def diverged(record: Mapping[str, Any]) -> bool:
    """Whether the training loss of a run became infinite or no number."""
    return not all(isfinite(row["train/loss"]) for row in record["history"])


def rows_of(sweep: Sweep) -> list[Cell]:
    """The cells that are rows."""
    return [cell for cell in sweep.cells if cell.row]


def markdown(sweep: Sweep, records: Records) -> str:
    """The table, what others gave for its cells, and what its figures are."""
    head = ["", *(column.title for column in sweep.columns)]
    lines = [head, ["---", *("---:" for _ in sweep.columns)]]
    for cell in rows_of(sweep):
        present = any((cell.id, seed) in records for seed in sweep.seeds)
        shown = [figure(sweep, cell, column, records).text(column.format) for column in sweep.columns]
        lines.append([cell.label or cell.id, *(shown if present else ["not run" for _ in shown])])
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    parts = [table, *_expectations(sweep, records), *_about(sweep, records)]
    return "\n\n".join(parts) + "\n"


def _expectations(sweep: Sweep, records: Records) -> list[str]:
    said = []
    for one in sweep.expected:
        cell = next(cell for cell in sweep.cells if cell.id == one.cell)
        column = next(column for column in sweep.columns if column.value == one.column)
        found = figure(sweep, cell, column, records)
        if not found.values:
            said.append(f"- {cell.label}: {one.source} gives {one.value:g}; not run here.")
            continue
        gap = mean(found.values) - one.value
        verdict = "within" if abs(gap) <= one.tolerance else "outside"
        said.append(
            f"- {cell.label}: {one.source} gives {one.value:g}; measured {found.text(column.format)}, "
            f"{gap:+.4f}: {verdict} ± {one.tolerance:g}."
        )
    return ["\n".join(said)] if said else []


def _about(sweep: Sweep, records: Records) -> list[str]:
    """Seeds, selection, and which rows of which data the figures stand on."""
    data: dict[str, None] = {}
    for (cell_id, _), record in records.items():
        if any(cell.id == cell_id for cell in sweep.cells):
            facts = record["data"]
            name = facts.get("data_set", facts["source"])
            data[f"{name}: trained on {facts['train_kind']}, tested on {facts['test_kind']}"] = None
    seeds = ", ".join(map(str, sweep.seeds))
    about = [f"Mean ± standard deviation over seeds {seeds}. {sweep.selection}", *(f"{line}." for line in data)]
    for cell in rows_of(sweep):
        lost = [seed for seed in sweep.seeds if (cell.id, seed) in records and diverged(records[cell.id, seed])]
        if lost:
            about.append(
                f"Training “{cell.label or cell.id}” diverged with seed {', '.join(map(str, lost))}: its loss is not "
                "finite; its accuracy is in the mean."
            )
    return [" ".join(about), *([sweep.notes.strip()] if sweep.notes else [])]


def csv_text(sweep: Sweep, records: Records) -> str:
    """Every value with full precision: a line a cell and seed."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["cell", "label", "seed", "key", *(column.value for column in sweep.columns)])
    for cell in sweep.cells:
        for seed in sweep.seeds:
            if record := records.get((cell.id, seed)):
                values: Sequence[float | None] = [value_of(record, column.value) for column in sweep.columns]
                writer.writerow([cell.id, cell.label, seed, record["key"], *values])
    return text.getvalue()
