"""The table of a declared sweep, from records only: mean ± standard deviation over seeds, and what is said below it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from statistics import fmean
from typing import Any

from rich.console import Console

from peftlab.metric_names import MetricName
from peftlab.objectives.base import figure_called
from peftlab.records.divergence import diverged
from peftlab.records.identity_tags import standing
from peftlab.report.columns import TRAINABLE, TRAINABLE_WITHOUT_HEAD, Column, cell_of
from peftlab.report.number_text import NOTHING, fixed
from peftlab.report.records_config import COMPUTED
from peftlab.report.render.markdown import escaped, markdown_table
from peftlab.report.render.terminal import print_lines, print_table
from peftlab.report.statistics import binomial_error
from peftlab.report.table import Cell, Head, Row, Section, Table, csv_text
from peftlab.report.words import with_the_head
from peftlab.sweeps.choice import Choice, Tried, value_of
from peftlab.sweeps.declaration import Arm, Sweep
from peftlab.terminal import flowed

Records = Mapping[tuple[str, int], Mapping[str, Any]]
"""Arm and seed → record."""
Stopped = Mapping[tuple[str, int], str]
"""Arm and seed → where the training diverged, of runs that have no record of results for that."""
Choices = Mapping[str, Choice]
"""Arm → what was tried for it, of those whose values are chosen."""

ABOUT_A_CHOICE = ("run", "values", "chosen by", "value")
"""Columns of table.csv that say what was tried for an arm whose values are chosen."""


def values_of(sweep: Sweep, arm: Arm, column: Column, records: Records) -> list[float]:
    """What ``arm`` has in ``column``, a value a seed; none where it does not apply, or where training diverged."""
    of_arm = [record for seed in sweep.seeds if (record := records.get((arm.id, seed))) and not diverged(record)]
    found = [value_of(record, column.value) for record in of_arm]
    return [value for value in found if value is not None]


def cell(sweep: Sweep, arm: Arm, column: Column, records: Records, stopped: Stopped | None = None) -> Cell:
    """The same as a table shows it; what lacks seeds says how many it has, and how many diverged."""
    n, lost = len(sweep.seeds), len(seeds_that_diverged(sweep, arm, records, stopped or {}))
    values = values_of(sweep, arm, column, records)
    shown = cell_of(values, column, complete=n - lost, expected=n)
    if not lost:
        return shown
    told = f"diverged {lost} of {n}"
    return replace(shown, text=told if shown.text == NOTHING else f"{shown.text} ({told})")


def seeds_that_diverged(sweep: Sweep, arm: Arm, records: Records, stopped: Stopped) -> list[int]:
    """Those of ``arm`` whose training diverged: its record says so, or one of an earlier version has no finite loss."""
    found = [(seed, (arm.id, seed)) for seed in sweep.seeds]
    return [seed for seed, at in found if at in stopped or (at in records and diverged(records[at]))]


def computed(record: Mapping[str, Any]) -> str:
    """How the numbers of ``record`` were computed, in a few words; empty: as its config's are today."""
    return standing(record).words


def kinds(sweep: Sweep, arm: Arm, records: Records) -> dict[str, Records]:
    """The records of ``arm`` by how they were computed, those as today first: no mean is over more than one kind."""
    found: dict[str, dict[tuple[str, int], Mapping[str, Any]]] = {}
    for seed in sweep.seeds:
        if record := records.get((arm.id, seed)):
            found.setdefault(computed(record), {})[arm.id, seed] = record
    return {words: found[words] for words in sorted(found)} or {"": {}}


def _titled(title: str, words: str, *, several: bool) -> str:
    """A cell's title; where it has ``several`` kinds of records, with how those of this one were computed."""
    return f"{title}, computed {words}" if several and words else title


def rows_of(sweep: Sweep) -> list[Arm]:
    """The arms that are rows."""
    return [one for one in sweep.cells if one.row]


def table_of(sweep: Sweep, records: Records, choices: Choices | None = None, stopped: Stopped | None = None) -> Table:
    """The table: a row an arm, or several where its records were not all computed alike."""
    choices = choices or {}
    heads = [Head(""), *([Head("chosen")] if sweep.chooses() else [])]
    heads += [Head(column.head, number=True) for column in sweep.columns]
    columns = [_with_digits(sweep, column, records) for column in sweep.columns]
    sections: list[Section] = []
    for group, of_group in groupby(rows_of(sweep), key=lambda one: one.group):
        rows = [
            row for one in of_group for row in _rows(sweep, one, columns, records, choices.get(one.id), stopped or {})
        ]
        title = group or ("others" if sections else "")
        sections.append(Section(title, tuple(rows)))
    return Table(tuple(heads), tuple(sections), sweep.title)


def _with_digits(sweep: Sweep, column: Column, records: Records) -> Column:
    """``column`` with the digits that the means of all rows together want."""
    if column.format != "number":
        return column
    kinds_of_all = ((arm, of_kind) for arm in rows_of(sweep) for of_kind in kinds(sweep, arm, records).values())
    return column.with_digits_of(values_of(sweep, arm, column, of_kind) for arm, of_kind in kinds_of_all)


def _rows(
    sweep: Sweep, arm: Arm, columns: Sequence[Column], records: Records, choice: Choice | None, stopped: Stopped
) -> Iterator[Row]:
    chosen = [Cell(NOTHING if choice is None or choice.chosen is None else choice.chosen.name)]
    by_kind = kinds(sweep, arm, records)
    for words, of_kind in by_kind.items():
        title = Cell(_titled(arm.title, words, several=len(by_kind) > 1))
        # a run that stopped was computed as today: it stands in the row of those
        lost = stopped if words == next(iter(by_kind)) else {}
        cells = [cell(sweep, arm, column, of_kind, lost) for column in columns]
        if not of_kind and not seeds_that_diverged(sweep, arm, of_kind, lost):
            cells = [Cell(_absent(choice)) for _ in cells]
        yield Row((title, *(chosen if sweep.chooses() else []), *cells), arm.id)


def render_markdown(
    sweep: Sweep, records: Records, choices: Choices | None = None, stopped: Stopped | None = None
) -> str:
    """The table, what others gave for its rows, what was tried for them, and what its figures are."""
    table = markdown_table(table_of(sweep, records, choices, stopped))
    return "\n\n".join([table, *_below(sweep, records, choices or {}, stopped or {})]) + "\n"


def render_terminal(
    out: Console, sweep: Sweep, records: Records, choices: Choices | None = None, stopped: Stopped | None = None
) -> None:
    """Print the same, the table drawn, no wider than the terminal."""
    print_table(out, table_of(sweep, records, choices, stopped), elsewhere="table.md")
    for part in _below(sweep, records, choices or {}, stopped or {}):
        print_lines(out, [part if part.startswith("|") else flowed(part, out.width), ""])


def _below(sweep: Sweep, records: Records, choices: Choices, stopped: Stopped) -> list[str]:
    """What is said below the table, a paragraph each."""
    about = [*_about(sweep, records, stopped), *_about_computed(sweep, records)]
    notes = [sweep.notes.strip()] if sweep.notes else []
    return [*_given_elsewhere(sweep, records), *about, *_tried(sweep, choices), *notes]


def _absent(choice: Choice | None) -> str:
    """What stands in a row without figures."""
    if choice is not None and choice.settled and choice.chosen is None:
        return "all failed"
    return "no result"


def _tried(sweep: Sweep, choices: Choices) -> list[str]:
    """For each cell whose values are chosen: all that was tried, and by what it was compared."""
    said, at_edge = [], []
    for cell in sweep.cells:
        choice = choices.get(cell.id)
        if choice is None:
            continue
        if _is_at_the_edge(choice):
            at_edge.append(escaped(cell.title))
        tried = [one for one in choice.tried if one.parameters]
        still_open = sum(one.state == "open" for one in choice.tried)
        results = ", ".join(_result(one, chosen=one is choice.chosen) for one in tried if one.state != "open")
        missing = f"; {still_open} not tried yet" if still_open else ""
        said.append(f"- {escaped(cell.title)}: {results or 'nothing tried'}{missing}.")
    if not said:
        return []
    paths = list(dict.fromkeys(choice.by for choice in choices.values()))
    edge = (
        f"\n\nAt the edge of what was tried, so that a better value may lie beyond: {len(at_edge)} of {len(said)} "
        f"({'; '.join(at_edge)})."
    )
    return [
        f"Chosen by {' or '.join(paths)} with seed {sweep.seeds[0]}, without the test data; tried were:\n\n"
        + "\n".join(said)
        + (edge if at_edge else "")
    ]


def _is_at_the_edge(choice: Choice) -> bool:
    """Whether a number was chosen that is the lowest or highest of several that were tried for its key."""
    chosen = choice.chosen.parameters if choice.chosen else {}
    for key, value in chosen.items():
        tried = [one.parameters[key] for one in choice.tried if key in one.parameters]
        if all(isinstance(one, int | float) and not isinstance(one, bool) for one in tried):
            lowest, highest = min(tried), max(tried)
            if lowest < highest and value in (lowest, highest):
                return True
    return False


def _result(one: Tried, *, chosen: bool) -> str:
    value = one.state if one.value is None else f"{one.value:.4f}"
    return f"{escaped(one.name)} ({value}{', chosen' if chosen else ''})"


def _given_elsewhere(sweep: Sweep, records: Records) -> list[str]:
    """Figures that others gave, and what was measured; a verdict where a tolerance is declared."""
    said = []
    for one in sweep.expected:
        for values, shown, label in _measured(sweep, one.cell, one.column, records):
            if not values:
                said.append(f"- {label}: {escaped(one.source)} gives {one.value:g}; not run here.")
                continue
            gap = fmean(values) - one.value
            verdict = "within" if abs(gap) <= one.tolerance else "outside"
            said.append(
                f"- {label}: {escaped(one.source)} gives {one.value:g}; measured {shown}, "
                f"{fixed(gap, sign=True)}: {verdict} ± {one.tolerance:g}."
            )
    for other in sweep.published:
        memory = " (from memory)" if other.provenance == "memory" else ""
        for values, shown, label in _measured(sweep, other.cell, other.column, records):
            measured = f"measured {shown}" if values else "not run here"
            said.append(f"- {label}: {escaped(other.source)} gives {other.value:g}{memory}; {measured}.")
    return ["\n".join(said)] if said else []


def _measured(sweep: Sweep, name: str, path: str, records: Records) -> Iterator[tuple[list[float], str, str]]:
    """Values, their cell and the label of an arm, for each kind of its records."""
    arm = sweep.arm(name)
    column = _with_digits(sweep, next(column for column in sweep.columns if column.value == path), records)
    if column.format == "percent":  # what others gave stands in the file as a share
        column = replace(column, format="score", digits=None)
    by_kind = kinds(sweep, arm, records)
    for words, of_kind in by_kind.items():
        label = escaped(_titled(arm.title, words, several=len(by_kind) > 1))
        yield values_of(sweep, arm, column, of_kind), cell(sweep, arm, column, of_kind).text, label


def _about(sweep: Sweep, records: Records, stopped: Stopped) -> list[str]:
    """Seeds, selection, and which rows of which data the figures stand on."""
    data: dict[str, None] = {}
    for (cell_id, _), record in records.items():
        if any(cell.id == cell_id for cell in sweep.cells):
            facts = record["data"]
            name = facts.get("data_set", facts["source"])
            data[f"{name}: trained on {facts['train_kind']}, tested on {facts['test_kind']}"] = None
    seeds = ", ".join(map(str, sweep.seeds))
    over = f"Mean ± standard deviation over seeds {seeds} (n = {len(sweep.seeds)})."
    about = [over, *([escaped(sweep.selection)] if sweep.selection else []), *(f"{escaped(line)}." for line in data)]
    for cell in rows_of(sweep):
        if lost := seeds_that_diverged(sweep, cell, records, stopped):
            about.append(
                f"Training “{escaped(cell.title)}” diverged with seed {', '.join(map(str, lost))}: its loss is not "
                "finite, and it has no part in the means."
            )
    return [" ".join([*about, *_about_the_head(sweep, records), *_about_sampling(sweep, records)])]


def _about_the_head(sweep: Sweep, records: Records) -> list[str]:
    """Which column counts the head beside what the method trains."""
    title = next((column.title for column in sweep.columns if column.value == TRAINABLE), None)
    if title is None:
        return []
    of_rows = {arm.id for arm in rows_of(sweep)}
    counts = [record["parameters"] for (arm, _), record in records.items() if arm in of_rows and "parameters" in record]
    names = [path.rpartition(".")[2] for path in (TRAINABLE, TRAINABLE_WITHOUT_HEAD)]
    pairs = [[of.get(name) for name in names] for of in counts]
    said = with_the_head(title, (every - alone for every, alone in pairs if None not in (every, alone)))
    return [escaped(said)] if said else []


def _about_sampling(sweep: Sweep, records: Records) -> list[str]:
    """What the number of test rows alone makes of shares of them, whatever the seeds say."""
    shares = [column for column in sweep.columns if _is_share_of_test_rows(column.value)]
    errors = [error for arm in rows_of(sweep) for one in shares if (error := _sampling_error(sweep, arm, one, records))]
    if not errors:
        return []
    of_all = next((column for column in shares if column.format == "percent"), shares[0])
    return [
        f"The number of test rows alone gives each share of them a standard error of "
        f"{of_all.errors_in_words(errors)} (binomial), however many seeds there are."
    ]


def _is_share_of_test_rows(path: str) -> bool:
    name = MetricName.from_record(path)
    figure = figure_called(name.figure) if name is not None and name.split == "test" else None
    return figure is not None and figure.share_of_rows


def _sampling_error(sweep: Sweep, arm: Arm, column: Column, records: Records) -> float | None:
    """Of the arm's mean; None without values, or where its runs have other numbers of rows."""
    values = values_of(sweep, arm, column, records)
    of_arm = [record for (one, _), record in records.items() if one == arm.id]
    counts = {(record["data"].get("rows") or {}).get("test") for record in of_arm}
    rows = counts.pop() if len(counts) == 1 else None
    return binomial_error(fmean(values), rows) if values and rows else None


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


def render_csv(sweep: Sweep, records: Records, choices: Choices | None = None) -> str:
    """Every value with full precision: a line an arm and seed, then one a value tried and not chosen.

    Of the unchosen no figure that stands on the test data is given.
    """
    choices = choices or {}
    lines: list[list[Any]] = []
    for one in sweep.cells:
        lines += _lines_of_row(sweep, one, records, choices.get(one.id))
        lines += _lines_of_unchosen(sweep, one, choices.get(one.id))
    head = ["cell", "label", "seed", "key", COMPUTED, *ABOUT_A_CHOICE, *(column.value for column in sweep.columns)]
    needless = {*(() if any(map(computed, records.values())) else (COMPUTED,))}
    needless |= {*(() if sweep.chooses() else ABOUT_A_CHOICE)}
    kept = [number for number, name in enumerate(head) if name not in needless]
    return csv_text([head[number] for number in kept], ([line[number] for number in kept] for line in lines))


def _lines_of_row(sweep: Sweep, arm: Arm, records: Records, choice: Choice | None) -> Iterator[list[Any]]:
    chosen = None if choice is None else choice.chosen
    for seed in sweep.seeds:
        if not (record := records.get((arm.id, seed))):
            continue
        about: list[Any] = ["row", "", "", ""]
        if choice and chosen:  # with the first seed
            about = ["row", chosen.name, choice.by, chosen.value if seed == sweep.seeds[0] else ""]
        values = [value_of(record, column.value) for column in sweep.columns]
        yield [arm.id, arm.label, seed, record["key"], computed(record), *about, *values]


def _lines_of_unchosen(sweep: Sweep, arm: Arm, choice: Choice | None) -> Iterator[list[Any]]:
    for tried in choice.tried if choice else ():
        if choice is None or tried is choice.chosen or tried.state == "open":
            continue
        about = [f"tried: {tried.state}", tried.name, choice.by, tried.value]
        if (record := tried.record) is None:
            yield [arm.id, arm.label, sweep.seeds[0], "", "", *about, *("" for _ in sweep.columns)]
            continue
        values = ["" if _on_test(column.value) else value_of(record, column.value) for column in sweep.columns]
        yield [arm.id, arm.label, sweep.seeds[0], record["key"], computed(record), *about, *values]


def _on_test(path: str) -> bool:
    """Whether the value at ``path`` stands on test data."""
    metric = MetricName.from_record(path)
    return metric.split == "test" if metric else path.startswith("forgetting")
