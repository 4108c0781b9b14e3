"""What ``peftlab check FILE`` says of a declared sweep: every cell, its jobs, their cost. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from peftlab.errors import counted
from peftlab.report.table import Head, Table, plain_table
from peftlab.sweeps import pool
from peftlab.sweeps.call import Call
from peftlab.sweeps.estimate import finished_records, in_words, seconds, similar
from peftlab.sweeps.plan import DeclaredPlan
from peftlab.sweeps.preflight import Checked, check_all, check_records, duplicates, lines, require_data

if TYPE_CHECKING:
    from peftlab.sweeps.counting import Count


@dataclass(frozen=True)
class ArmJobs:
    """The jobs of one arm."""

    arm: str
    jobs: int
    finished: int
    seconds: float | None
    """Of one job; None without a record of a similar run."""
    known_from: frozenset[str]
    """Keys of the runs whose records say so."""
    trainable: str

    def line(self) -> list[str]:
        """As it is printed."""
        each = "?" if self.seconds is None else in_words(self.seconds)
        return [self.arm, str(self.jobs), str(self.finished), str(self.jobs - self.finished), each, self.trainable]


HEADS = (
    Head("cell"), Head("jobs", number=True), Head("finished", number=True), Head("to run", number=True),
    Head("a run\ntakes", number=True), Head("trainable without head", number=True),
)  # fmt: skip


@dataclass(frozen=True)
class Overview:
    """What a declared sweep would run."""

    title: str
    table: Table
    notes: list[str]
    mistakes: list[str]
    """Cells that could not be built, each with the reason."""


def overview(call: Call, *, counts: bool) -> Overview:
    """Check every cell of the sweep, and describe what it would run.

    Args:
        call: the file and what was typed behind it.
        counts: also count trainable parameters, which imports torch in another process.

    Raises:
        PeftlabError: naming the file, the cell and the key of what does not compose, and data that cannot be used.
    """
    plan = call.plan(reading=True)
    try:
        found = check_all(plan)
        data = require_data(plan, found)
        first = {one.variant.arm.id: one for one in reversed(found)}  # the first candidate stands for its cell
        trainable = _counted([first[arm.id] for arm in plan.sweep.cells]) if counts else {}
        rows = _rows(plan, first, trainable)
    finally:
        plan.close()
    heads = HEADS if counts else HEADS[:-1]
    to_run = sum(row.jobs - row.finished for row in rows)
    notes = [
        f"{counted(len(rows), 'cell')}, {counted(plan.total(), 'job')}{' at most' if plan.sweep.chooses() else ''}: "
        f"{plan.total() - to_run} finished, {to_run} to run.",
        *(f"the same run: {' = '.join(variant.id for variant in alike)}" for alike in duplicates(found)),
        *data,
        _cost(plan, rows),
    ]
    mistakes = [f"cell '{arm}': {count.reason}" for arm, count in trainable.items() if count.mistake]
    table = plain_table(heads, (row.line()[: len(heads)] for row in rows))
    return Overview(f"{call.file}: {plan.sweep.title}", table, notes, mistakes)


def _rows(plan: DeclaredPlan, first: Mapping[str, Checked], trainable: Mapping[str, Count]) -> list[ArmJobs]:
    outcome = pool.finished(plan, to_run=True)
    check_records(plan, outcome)
    listed = lines(plan, outcome)
    finished = Counter(line.variant.arm.id for line in listed if line.state == "finished")
    jobs = Counter(line.variant.arm.id for line in listed)
    records = finished_records(plan.folder.parent)
    return [
        ArmJobs(
            arm.id,
            jobs[arm.id],
            finished[arm.id],
            seconds(first[arm.id].config, records),
            frozenset(str(record["key"]) for record in similar(first[arm.id].config, records)),
            _shown(trainable[arm.id]) if trainable else "",
        )
        for arm in plan.sweep.cells
    ]


def _counted(found: Sequence[Checked]) -> dict[str, Count]:
    from peftlab.sweeps.counting import count_all

    counted = count_all([one.config for one in found])
    return {one.variant.arm.id: count for one, count in zip(found, counted, strict=True)}


def _shown(count: Count) -> str:
    if count.number is not None:
        return f"{count.number:,}"
    return "cannot be built" if count.mistake else f"? ({count.reason})"


def _cost(plan: DeclaredPlan, rows: Sequence[ArmJobs]) -> str:
    """Time of all jobs to run, one after the other; the file's own word where there is no record to go by."""
    waiting = [row for row in rows if row.jobs > row.finished]
    known = [row.seconds * (row.jobs - row.finished) for row in waiting if row.seconds is not None]
    if not waiting:
        return "cost: none, all is finished."
    if not known:
        said = f"{plan.sweep.cost} (the file's word; " if plan.sweep.cost else "not known ("
        return f"cost: {said}no record here is of a similar run)"
    basis = len(frozenset().union(*(row.known_from for row in waiting)))
    unknown = len(waiting) - len(known)
    but = f", without {counted(unknown, 'cell')} of which no record is similar" if unknown else ""
    said = f" The file says: {plan.sweep.cost}" if plan.sweep.cost else ""
    return (
        f"cost: about {in_words(sum(known))} of runs one after the other, from "
        f"{counted(basis, 'similar finished run')}{but}.{said}"
    )
