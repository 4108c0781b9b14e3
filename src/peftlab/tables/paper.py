"""A paper's table of results, cell by cell: what is published, what is computed here, what would have to be run.

Counts of parameters and bytes are computed again and must come out as declared. A score cannot be computed again: it is
shown as published, with the command that trains the cell where its weights and data are; once that run is finished
here, its score stands beside the published one. Tasks that peftlab cannot run say why.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from peftlab.errors import ConfigError, PeftlabError, listed, nearest
from peftlab.fields import FiniteFloat
from peftlab.metric_names import MetricName
from peftlab.objectives.recorded import BEFORE
from peftlab.schema import check_keys, validate
from peftlab.tables import counts
from peftlab.tables.declared import Computed, read_table
from peftlab.tables.memory import Memory, count_bytes, status_of

CellStatus = Literal["match", "differs", "measured", "not run here", "cannot be run here"]


@dataclass(kw_only=True)
class Task:
    """A column of scores."""

    metric: str = MetricName("test", BEFORE["selects"]).in_record
    """Where the score stands in a record; times 100 it is the paper's."""
    overrides: list[str] = field(default_factory=list)
    """Of ``peftlab train``: the task's data."""
    missing: str | None = None
    """Why peftlab cannot give this score."""

    def __post_init__(self) -> None:
        """Raise ValueError unless the task can either be run or says why not."""
        if bool(self.overrides) == (self.missing is not None):
            raise ValueError("a task needs either overrides or missing.")


@dataclass(kw_only=True)
class PaperRow:
    """One method on one backbone."""

    row: str
    source: str
    """Where the scores were read."""
    counted: str | None = None
    """Row of the table of counts whose parameters stand in the first cell."""
    memory: Memory | None = None
    scores: dict[str, FiniteFloat] = field(default_factory=dict)
    """Task → published score."""
    mean: FiniteFloat | None = None
    """Published mean of the scores; it must be their mean, as far as they are rounded."""
    overrides: list[str] = field(default_factory=list)
    """Of ``peftlab train``: the row's backbone, method and recipe; empty where peftlab cannot train it."""
    remark: str = ""


@dataclass(kw_only=True)
class PaperTable:
    """The whole file."""

    kind: str
    title: str
    counts: str
    """The declared table of parameter counts that ``counted`` names rows of, and ``memory`` backbones."""
    counts_table: str
    """Its ``table`` of those rows."""
    sources: dict[str, str]
    tasks: dict[str, Task] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)
    """Of ``peftlab train``, for all cells."""
    rows: list[PaperRow]


@dataclass(frozen=True)
class Entry:
    """One figure of the paper beside what is here, ready to be shown."""

    row: str
    cell: str
    published: str
    value: float | None
    here: str
    """``value`` as it is shown."""
    status: CellStatus
    source: str
    how: str
    """What was counted, the command that runs it, or why nothing does."""
    remark: str = ""
    failure: str | None = None
    words: str = ""
    """Of a score that a command gives, what this cell adds to that of its row; else ``how`` once more."""


def compute(content: dict[str, Any], where: str) -> Computed:
    """Compute the cells of the table in ``content``.

    Args:
        content: what the YAML file holds.
        where: its path, for messages.

    Raises:
        PeftlabError: naming the row that cannot be computed.
    """
    started = time.perf_counter()
    try:
        table = _checked(content)
        counted_content, counted_where = read_table(table.counts)
        wanted = [row.counted for row in table.rows if row.counted is not None]
        counted = _counted(counted_content, counted_where, table.counts_table, wanted)
        backbones = validate(counted_content | {"rows": []}, counts.CountsTable, "")
        runs = _Runs()
        cells = [entry for row in table.rows for entry in _entries(row, table, counted, backbones, runs)]
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    remarks = list(dict.fromkeys(entry.remark for entry in cells if entry.remark))
    used = {entry.source for entry in cells}
    failures = [entry.failure for entry in cells if entry.failure is not None]
    by_status = {
        status: sum(entry.status == status for entry in cells) for status in dict.fromkeys(c.status for c in cells)
    }
    return Computed(
        title=table.title,
        columns=["row", "cell", "published", "here", "status", "source", "how"],
        numbers={"published", "here"},
        rows=[_shown(entry, remarks) for entry in cells],
        records=[_record(entry) for entry in cells],
        notes=[f"{counts.marked(number)} {remark}" for number, remark in enumerate(remarks)]
        + [f"source {name}: {text}" for name, text in table.sources.items() if name in used],
        failures=failures,
        summary=f"{len(cells)} {'cell' if len(cells) == 1 else 'cells'}: "
        f"{', '.join(f'{number} {status}' for status, number in by_status.items())}; "
        f"{len(failures)} not as declared; {time.perf_counter() - started:.1f} s",
        **_brief(table, cells, remarks),
    )


def _brief(table: PaperTable, cells: list[Entry], remarks: list[str]) -> dict[str, Any]:
    """The table for a terminal: of the commands, what all cells share is a note, and what a row adds in its heading."""
    if not any(entry.words for entry in cells):
        return {}
    lines: list[list[str]] = []
    for row in table.rows:
        own = [entry for entry in cells if entry.row == row.row]
        heading = f"{row.row}: {' '.join(row.overrides)}" if any(entry.words for entry in own) else row.row
        lines += [[heading, *_shown(entry, remarks, entry.words or entry.how)[1:]] for entry in own]
    shared = " ".join([*table.overrides, *_shared(table)])
    note = f"a score is that of: peftlab train {shared}, what its heading adds, and what stands beside it"
    return {"brief": lines, "brief_note": f"{note} (--markdown and --json have the whole commands)"}


def _shared(table: PaperTable) -> list[str]:
    """The words that all tasks have."""
    lists = [task.overrides for task in table.tasks.values() if task.missing is None]
    return [word for word in lists[0] if len(lists) > 1 and all(word in one for one in lists)] if lists else []


def _checked(content: dict[str, Any]) -> PaperTable:
    table = validate(content, PaperTable, "")
    for name, task in (content.get("tasks") or {}).items():
        check_keys(task, Task, f"tasks.{name}")
    for number, given in enumerate(content["rows"], start=1):
        check_keys(given, PaperRow, f"rows, number {number}")
        check_keys(given.get("memory") or {}, Memory, f"rows, number {number}, memory")
    for row in table.rows:
        for source in (row.source, *([row.memory.source] if row.memory else [])):
            if source not in table.sources:
                raise ConfigError(f"row '{row.row}': source '{source}' is not in sources: {listed(table.sources)}.")
        for task in row.scores:
            if task not in table.tasks:
                close = nearest(task, table.tasks)
                raise ConfigError(f"row '{row.row}': '{task}' is no task.{close} Tasks: {listed(table.tasks)}.")
    return table


def _counted(content: dict[str, Any], where: str, name: str, wanted: list[str]) -> dict[str, dict[str, Any]]:
    """Row → its record in the table of counts, for the rows that are wanted."""
    there = [row for row in content["rows"] if row["table"] == name]
    names = [row["row"] for row in there]
    for row in wanted:
        if row not in names:
            raise ConfigError(f"counted: '{name}' in {where} has no row '{row}'.{nearest(row, names)}")
    found = counts.compute(content | {"rows": [row for row in there if row["row"] in wanted]}, where)
    failures = {record["row"]: failure for record in found.records for failure in found.failures
                if failure.startswith(f"{name}, {record['row']}: ")}  # fmt: skip
    return {record["row"]: record | {"failure": failures.get(record["row"])} for record in found.records}


def _entries(
    row: PaperRow, table: PaperTable, counted: dict[str, dict[str, Any]], backbones: counts.CountsTable, runs: _Runs
) -> list[Entry]:
    cells = []
    if row.counted is not None:
        cells.append(_parameters(row.row, counted[row.counted]))
    if row.memory is not None:
        try:
            cells.append(_memory(row.row, row.memory, backbones))
        except PeftlabError as error:
            raise ConfigError(f"row '{row.row}': {error}") from error
    scores = [_score(row, task, table, runs) for task in row.scores]
    if row.mean is not None:
        scores.append(_mean(row, table))
    if row.remark and scores:
        scores[0] = Entry(**(vars(scores[0]) | {"remark": row.remark}))
    return cells + scores


def _parameters(row: str, record: dict[str, Any]) -> Entry:
    percent = record["percent"]
    here = f"{record['recomputed']:,}"
    return Entry(
        row=row,
        cell="parameters",
        published=record["published"],
        value=record["recomputed"] if percent is None else percent,
        here=here if percent is None else f"{percent:.4f}%",
        status=record["status"],
        source=record["source"],
        how=record["config"] if percent is None else f"{record['config']}: {here}",
        remark=record["remark"],
        failure=record["failure"],
    )


def _memory(row: str, memory: Memory, backbones: counts.CountsTable) -> Entry:
    found = count_bytes(memory, backbones)
    status = status_of(memory, found)
    wrong = []
    if found.bytes != memory.recomputed:
        wrong.append(f"{found.bytes:,} bytes, declared {memory.recomputed:,}")
    if status != memory.status:
        wrong.append(f"status is {status}, declared {memory.status}")
    sign = {"above": "> ", "below": "< ", None: ""}[memory.bound]
    adapter = [f"LoRA of rank {memory.adapter.get('rank')}"] if memory.adapter else []
    how = [f"{memory.backbone} in {memory.store}", *adapter, f"{found.trainable:,} parameters train"]
    return Entry(
        row=row,
        cell="memory",
        published=f"{sign}{memory.published}",
        value=found.bytes,
        here=f"{found.bytes / 1e9:.1f} GB",
        status=status,
        source=memory.source,
        how="; ".join(how),
        remark=memory.remark,
        failure=f"{row}, memory: {'; '.join(wrong)}" if wrong else None,
    )


def _score(row: PaperRow, name: str, table: PaperTable, runs: _Runs) -> Entry:
    """A score: as published, and as measured if a run of its command is finished here."""
    task = table.tasks[name]
    value, status, how = None, "cannot be run here", task.missing or "peftlab has no such method or backbone"
    words = ""
    if task.missing is None and row.overrides:
        overrides = [*table.overrides, *task.overrides, *row.overrides]
        value, how = runs.measured(table, task, row), f"peftlab train {' '.join(overrides)}"
        status = "not run here" if value is None else "measured"
        words = " ".join(word for word in task.overrides if word not in _shared(table))
    return Entry(
        row=row.row,
        cell=name,
        published=f"{row.scores[name]:g}",
        value=value,
        here="" if value is None else f"{value:.2f}",
        status=status,  # type: ignore[arg-type]
        source=row.source,
        how=how,
        words=words,
    )


class _Runs:
    """The finished runs of the table's commands.

    A config is composed in a fifth of a second. Where nothing has been run yet, only so many are that each row's and
    each task's words are seen to be right.
    """

    def __init__(self) -> None:
        from peftlab.composition import composed

        self._none = not any(Path(composed([]).output_dir).glob("*/*/record.json"))
        self._tried: set[tuple[str, ...]] = set()

    def measured(self, table: PaperTable, task: Task, row: PaperRow) -> float | None:
        """The score in percent of the finished run of a row and a task, if there is one below the folder of outputs."""
        from peftlab.composition import checked
        from peftlab.records.folder import RunFolder

        parts = {("task", *task.overrides), ("row", *row.overrides)}
        overrides = [*table.overrides, *task.overrides, *row.overrides]
        if self._none and parts <= self._tried and not any(word.startswith("output_dir=") for word in overrides):
            return None
        self._tried |= parts
        record = RunFolder.of(checked(overrides)).read_record()
        if record is None or record["status"] != "finished":
            return None
        value: Any = record
        for part in task.metric.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if not isinstance(value, int | float):
            raise ConfigError(f"metric '{task.metric}': the record of run {record['key']} has no number there.")
        return 100.0 * value


def _mean(row: PaperRow, table: PaperTable) -> Entry:
    """The published mean beside the mean of the published scores; they agree as far as both are rounded."""
    assert row.mean is not None
    complete = set(row.scores) == set(table.tasks)
    mean = sum(row.scores.values()) / len(row.scores) if complete else None
    agrees = mean is None or abs(mean - row.mean) <= 0.05 + 0.05 + 1e-9  # each score and the mean, to one decimal
    return Entry(
        row=row.row,
        cell="mean",
        published=f"{row.mean:g}",
        value=mean,
        here="" if mean is None else f"{mean:.2f}",
        status="cannot be run here" if mean is None else "match" if agrees else "differs",
        source=row.source,
        how="mean of the published scores" if complete else "some of its scores are not in this table",
        failure=None if agrees else f"{row.row}: the mean of the scores is {mean:.3f}, declared {row.mean:g}",
    )


def _record(entry: Entry) -> dict[str, Any]:
    command = entry.how if entry.how.startswith("peftlab train ") else None
    return {
        "row": entry.row, "cell": entry.cell, "published": entry.published, "recomputed": entry.value,
        "status": entry.status, "as_declared": entry.failure is None, "source": entry.source,
        "command": command, "how": entry.how, "remark": entry.remark,
    }  # fmt: skip


def _shown(entry: Entry, remarks: list[str], how: str | None = None) -> list[str]:
    name = f"{entry.cell} {counts.marked(remarks.index(entry.remark))}" if entry.remark else entry.cell
    status = entry.status if entry.failure is None else f"{entry.status} (!)"
    return [entry.row, name, entry.published, entry.here, status, entry.source, entry.how if how is None else how]
