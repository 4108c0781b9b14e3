"""The table of a declared sweep, from records only: mean ± standard deviation over seeds, as Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from statistics import mean, stdev
from typing import Any

from peftlab.records.identity_tags import standing
from peftlab.report.markdown_text import escaped, table_line
from peftlab.report.records_config import COMPUTED
from peftlab.report.tables_columns import fixed
from peftlab.sweeps.choice import Choice, Tried, diverged, value_of
from peftlab.sweeps.declaration import Cell, Column, Sweep

Records = Mapping[tuple[str, int], Mapping[str, Any]]
"""Cell and seed → record."""
Choices = Mapping[str, Choice]
"""Cell → what was tried for it, of the cells whose values are chosen."""


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
            shown = fixed(mean(self.values), sign=form == "difference")
            if form == "difference" and not any(self.values):
                shown = "0 (exactly)"
            elif len(self.values) > 1:
                shown += f" ± {stdev(self.values):.4f}"
        return shown if len(self.values) == self.seeds else f"{shown} ({len(self.values)}/{self.seeds} seeds)"


def figure(sweep: Sweep, cell: Cell, column: Column, records: Records) -> Figure:
    """What ``cell`` has in ``column``; empty where it does not apply."""
    found = [value_of(record, column.value) for seed in sweep.seeds if (record := records.get((cell.id, seed)))]
    return Figure(tuple(value for value in found if value is not None), len(sweep.seeds))


def computed(record: Mapping[str, Any]) -> str:
    """How the numbers of ``record`` were computed, in a few words; empty: as its config's are today."""
    return standing(record).words


def kinds(sweep: Sweep, cell: Cell, records: Records) -> dict[str, Records]:
    """The records of ``cell`` by how they were computed, those as today first: no mean is over more than one kind."""
    found: dict[str, dict[tuple[str, int], Mapping[str, Any]]] = {}
    for seed in sweep.seeds:
        if record := records.get((cell.id, seed)):
            found.setdefault(computed(record), {})[cell.id, seed] = record
    return {words: found[words] for words in sorted(found)} or {"": {}}


def _titled(title: str, words: str, *, several: bool) -> str:
    """A cell's title; where it has ``several`` kinds of records, with how those of this one were computed."""
    return f"{title}, computed {words}" if several and words else title


def rows_of(sweep: Sweep) -> list[Cell]:
    """The cells that are rows."""
    return [cell for cell in sweep.cells if cell.row]


def markdown(sweep: Sweep, records: Records, choices: Choices | None = None) -> str:
    """The table, what others gave for its cells, what was tried for them, and what its figures are."""
    choices = choices or {}
    chooses = ["chosen"] if sweep.chooses() else []
    head = ["", *chooses, *(escaped(column.title) for column in sweep.columns)]
    lines = [head, ["---", *("---" for _ in chooses), *("---:" for _ in sweep.columns)]]
    group = ""
    for cell in rows_of(sweep):
        if cell.group != group:
            group = cell.group
            lines.append([f"**{escaped(group or 'others')}**", *("" for _ in head[1:])])
        by_kind = kinds(sweep, cell, records)
        for words, of_kind in by_kind.items():
            shown = [figure(sweep, cell, column, of_kind).text(column.format) for column in sweep.columns]
            cells = shown if of_kind else [_absent(choices.get(cell.id)) for _ in shown]
            chosen = [escaped(_chosen(choices.get(cell.id))) for _ in chooses]
            title = escaped(_titled(cell.title, words, several=len(by_kind) > 1))
            lines.append([title, *chosen, *map(escaped, cells)])
    table = "\n".join(map(table_line, lines))
    about = [*_about(sweep, records), *_about_computed(sweep, records)]
    parts = [table, *_given_elsewhere(sweep, records), *about, *_tried(sweep, choices)]
    return "\n\n".join([*parts, *([sweep.notes.strip()] if sweep.notes else [])]) + "\n"


def _absent(choice: Choice | None) -> str:
    """What stands in a row without figures."""
    if choice is not None and choice.settled and choice.chosen is None:
        return "all failed"
    return "no result"


def _chosen(choice: Choice | None) -> str:
    return "–" if choice is None or choice.chosen is None else choice.chosen.name


def _tried(sweep: Sweep, choices: Choices) -> list[str]:
    """For each cell whose values are chosen: all that was tried, and by what it was compared."""
    said = []
    for cell in sweep.cells:
        choice = choices.get(cell.id)
        if choice is None:
            continue
        tried = [one for one in choice.tried if one.parameters]
        still_open = sum(one.state == "open" for one in choice.tried)
        results = ", ".join(_result(one, chosen=one is choice.chosen) for one in tried if one.state != "open")
        missing = f"; {still_open} not tried yet" if still_open else ""
        said.append(f"- {escaped(cell.title)}: {results or 'nothing tried'}{missing}.")
    if not said:
        return []
    paths = list(dict.fromkeys(choice.by for choice in choices.values()))
    return [
        f"Chosen by {' or '.join(paths)} with seed {sweep.seeds[0]}, without the test data; tried were:\n\n"
        + "\n".join(said)
    ]


def _result(one: Tried, *, chosen: bool) -> str:
    value = one.state if one.value is None else f"{one.value:.4f}"
    return f"{escaped(one.name)} ({value}{', chosen' if chosen else ''})"


def _given_elsewhere(sweep: Sweep, records: Records) -> list[str]:
    """Figures that others gave for cells, and what was measured; a verdict where a tolerance is declared."""
    said = []
    for one in sweep.expected:
        for found, label, form in _measured(sweep, one.cell, one.column, records):
            if not found.values:
                said.append(f"- {label}: {escaped(one.source)} gives {one.value:g}; not run here.")
                continue
            gap = mean(found.values) - one.value
            verdict = "within" if abs(gap) <= one.tolerance else "outside"
            said.append(
                f"- {label}: {escaped(one.source)} gives {one.value:g}; measured {found.text(form)}, "
                f"{fixed(gap, sign=True)}: {verdict} ± {one.tolerance:g}."
            )
    for other in sweep.published:
        memory = " (from memory)" if other.provenance == "memory" else ""
        for found, label, form in _measured(sweep, other.cell, other.column, records):
            measured = f"measured {found.text(form)}" if found.values else "not run here"
            said.append(f"- {label}: {escaped(other.source)} gives {other.value:g}{memory}; {measured}.")
    return ["\n".join(said)] if said else []


def _measured(sweep: Sweep, cell_id: str, path: str, records: Records) -> Iterator[tuple[Figure, str, str]]:
    """Figure, label and format of a cell, of each kind of its records."""
    cell = sweep.cell(cell_id)
    column = next(column for column in sweep.columns if column.value == path)
    by_kind = kinds(sweep, cell, records)
    for words, of_kind in by_kind.items():
        label = escaped(_titled(cell.title, words, several=len(by_kind) > 1))
        yield figure(sweep, cell, column, of_kind), label, column.format


def _about(sweep: Sweep, records: Records) -> list[str]:
    """Seeds, selection, and which rows of which data the figures stand on."""
    data: dict[str, None] = {}
    for (cell_id, _), record in records.items():
        if any(cell.id == cell_id for cell in sweep.cells):
            facts = record["data"]
            name = facts.get("data_set", facts["source"])
            data[f"{name}: trained on {facts['train_kind']}, tested on {facts['test_kind']}"] = None
    seeds = ", ".join(map(str, sweep.seeds))
    over = f"Mean ± standard deviation over seeds {seeds} (n = {len(sweep.seeds)})."
    about = [over, escaped(sweep.selection), *(f"{escaped(line)}." for line in data)]
    for cell in rows_of(sweep):
        lost = [seed for seed in sweep.seeds if (cell.id, seed) in records and diverged(records[cell.id, seed])]
        if lost:
            about.append(
                f"Training “{escaped(cell.title)}” diverged with seed {', '.join(map(str, lost))}: its loss is not "
                "finite; its figures are in the means."
            )
    return [" ".join(about)]


def _about_computed(sweep: Sweep, records: Records) -> list[str]:
    """Which rows were not computed as the numbers of their configs are today, and what is other."""
    lines: dict[str, dict[str, None]] = {}
    for cell in rows_of(sweep):
        by_kind = kinds(sweep, cell, records)
        for words, of_kind in by_kind.items():
            title = _titled(cell.title, words, several=len(by_kind) > 1)
            for line in (line for record in of_kind.values() for line in standing(record).lines()):
                lines.setdefault(line, {})[title] = None
    said = [f"{line[:1].upper()}{line[1:]}. Rows: {'; '.join(titles)}." for line, titles in lines.items()]
    return ["\n".join(f"- {escaped(line)}" for line in said)] if said else []


def csv_text(sweep: Sweep, records: Records, choices: Choices | None = None) -> str:
    """Every value with full precision: a line a cell and seed, then a line a value that was tried and not chosen.

    Of the unchosen no figure that stands on the test data is given.
    """
    choices = choices or {}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    paths = [column.value for column in sweep.columns]
    extra = ["run", "values", "chosen by", "value"] if sweep.chooses() else []
    told = [COMPUTED] if any(map(computed, records.values())) else []
    writer.writerow(["cell", "label", "seed", "key", *told, *extra, *paths])
    for cell in sweep.cells:
        choice = choices.get(cell.id)
        chosen = None if choice is None else choice.chosen
        for seed in sweep.seeds:
            if record := records.get((cell.id, seed)):
                about = ["row", chosen.name, choice.by, chosen.value] if choice and chosen else ["row", "", "", ""]
                if chosen and seed != sweep.seeds[0]:
                    about[-1] = ""  # the choice was made with the first seed
                values = [value_of(record, path) for path in paths]
                said = [computed(record)] if told else []
                writer.writerow([cell.id, cell.label, seed, record["key"], *said, *(about if extra else []), *values])
        for one in choice.tried if choice else ():
            if one is chosen or one.state == "open":
                continue
            key = "" if one.record is None else one.record["key"]
            shown = ["" if one.record is None or _on_test(path) else value_of(one.record, path) for path in paths]
            about = [f"tried: {one.state}", one.name, choice.by if choice else "", one.value]
            said = [computed(one.record) if one.record else ""] if told else []
            writer.writerow([cell.id, cell.label, sweep.seeds[0], key, *said, *about, *shown])
    return text.getvalue()


def _on_test(path: str) -> bool:
    """Whether the value at ``path`` stands on test data."""
    return path.startswith(("metrics.test", "forgetting"))
