"""How the runs of a folder stand, from what lies there and from Slurm's queue; no launcher is asked. No torch."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from peftlab.cluster import slurm
from peftlab.cluster.ledger import PLACE, Ledger
from peftlab.cluster.slurm import SlurmError, Worker
from peftlab.errors import RunError
from peftlab.records.divergence import ENDED, STATUS
from peftlab.records.folder import RunFolder
from peftlab.records.history import epochs_in
from peftlab.sweeps import roster

State = Literal["running", "queued", "failed", "lost", "done"]
PATIENCE = 5.0
"""Seconds that squeue may take."""


@dataclass(frozen=True)
class RunState:
    """One run."""

    run: str
    """Its folder."""
    title: str
    state: State
    epochs: int = 0
    """Whole ones that it has behind it."""
    about: str = ""
    """Who is at it, why it failed, whom its lock names."""


@dataclass(frozen=True)
class FolderState:
    """A folder of runs."""

    folder: str
    runs: tuple[RunState, ...]
    coming: int
    """Runs that are named when others have ended; they count as queued."""
    workers: tuple[Worker, ...]
    """Those that live."""
    notes: tuple[str, ...]

    def sum(self) -> dict[str, int]:
        """How many there are of each state, and in all."""
        counts = Counter(run.state for run in self.runs)
        found = {state: counts[state] for state in get_args(State)}
        found["queued"] += self.coming
        return found | {"total": sum(found.values())}

    def plain(self) -> dict[str, Any]:
        """As plain containers."""
        return {
            "folder": self.folder,
            "sum": self.sum(),
            "runs": [asdict(run) for run in self.runs],
            "workers": [asdict(worker) for worker in self.workers],
            "notes": list(self.notes),
        }


def folder_state(given: str) -> FolderState:
    """How the runs in the folder ``given`` (``<output_dir>/<name>``, or ``<output_dir>``) stand.

    Raises:
        RunError: if it is no folder of runs.
    """
    folder = Path(given)
    if not folder.is_dir():
        raise RunError(f"there is no folder '{given}'. Give that of a sweep, <output_dir>/<name>.")
    runs: list[RunState] = []
    coming = 0
    workers, notes = _workers(folder)
    known = bool(workers or notes or (folder / PLACE).is_dir())
    for place in [folder, *sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")]:
        named = roster.read(place)
        more = named.pop("", None)
        found = {run.name for run in _run_folders(place)}
        known = known or bool(named or found)
        states = [_state_of(RunFolder(place / key), named.get(key)) for key in [*named, *sorted(found - set(named))]]
        runs += states
        if more is not None and any(run.state != "done" for run in states):
            coming += int(more.title) if more.title.isdigit() else 0
    if not known:
        raise RunError(
            f"'{given}' holds no runs, and nothing was submitted for it. Give a sweep's <output_dir>/<name>."
        )
    left = any(run.state != "done" for run in runs)
    if (folder / PLACE).is_dir() and left and not workers and not notes:
        notes = ["no worker is in the queue: the command that submitted it sends those that are missing."]
    return FolderState(given, tuple(runs), coming, tuple(workers), tuple(notes))


def _run_folders(place: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        for path in place.iterdir():
            if path.name[0] != "." and ((path / "record.json").exists() or (path / ".lock").exists()):
                yield path


def _state_of(folder: RunFolder, named: roster.Entry | None) -> RunState:
    try:
        record = folder.read_record(checked=False)
    except RunError as error:
        return RunState(str(folder.path), _title(folder, named, None), "failed", about=str(error))
    status = None if record is None else record["status"]
    title = _title(folder, named, record)

    def state(state: State, about: str = "") -> RunState:
        return RunState(str(folder.path), title, state, epochs_in(folder.metrics), about)

    if status in ENDED:
        return state("done", "its training diverged" if status == STATUS else "")
    if (holder := folder.held_by()) is not None:
        return state("running", f"process {holder}")
    if (gone := folder.last_holder()) is not None:
        return state("lost", f"process {gone} is gone; started again, it resumes")
    if named is not None and named.failed:
        return state("failed", named.failed)
    if status == "failed" and record is not None:
        return state("failed", str(record.get("error", "")))
    return state("queued", "interrupted; it resumes" if status == "interrupted" else "")


def _title(folder: RunFolder, named: roster.Entry | None, record: dict[str, Any] | None) -> str:
    if named is not None:
        return named.title
    return folder.key if record is None else str(record.get("name", folder.key))


def _workers(folder: Path) -> tuple[list[Worker], list[str]]:
    """Living workers that were submitted for the folder or for one in it; what is to be said if nobody knows."""
    ledgers = [Ledger(path.parent) for path in sorted([folder / PLACE, *folder.glob(f"*/{PLACE}")]) if path.is_dir()]
    submissions = [one for ledger in ledgers for one in ledger.submissions()]
    if not submissions:
        return [], []
    try:
        known = slurm.queue(PATIENCE)
    except SlurmError as error:
        return [], [f"which workers are in the queue is not known: {error}"]
    tokens = {one.token for one in submissions}
    return [worker for worker in known if worker.token in tokens and worker.living], []
