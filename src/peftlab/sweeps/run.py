"""Running the jobs of a sweep: a fresh process each, forked from a server that has imported the libraries.

The parent imports no torch. A job starts when the run that it starts from is finished; what is finished already is not
run again, and what was interrupted resumes.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from peftlab.composition import checked
from peftlab.errors import PeftlabError
from peftlab.runs.folder import RunFolder
from peftlab.sweeps.declaration import Job

PRELOADED = ["peftlab.sweeps.worker"]


@dataclass
class Outcome:
    """What became of the jobs of a sweep."""

    records: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    """Cell and seed → record of the finished run."""
    folders: dict[tuple[str, int], Path] = field(default_factory=dict)
    """Cell and seed → folder of the finished run."""
    failures: list[str] = field(default_factory=list)
    skipped: int = 0
    """Jobs that were finished before."""


def overrides_of(job: Job, outcome: Outcome) -> list[str]:
    """The job's overrides, with the folder of the run that it starts from."""
    if job.start is None:
        return list(job.overrides)
    return [*job.overrides, f"backbone.from_run={outcome.folders[job.start, job.seed]}"]


def check_all(jobs: Sequence[Job]) -> None:
    """Compose and check every job before any of them runs.

    Raises:
        PeftlabError: naming the job.
    """
    for job in jobs:
        # The folder to start from is not there yet; that it can be used is checked when it is.
        start = [] if job.start is None else [f"backbone.from_run={job.start}"]
        try:
            checked([*job.overrides, *start])
        except PeftlabError as error:
            raise type(error)(f"cell '{job.cell}': {error}") from error


def finished(jobs: Sequence[Job]) -> Outcome:
    """The records that there are, without running anything."""
    outcome = Outcome()
    for job in jobs:
        if job.start is None or (job.start, job.seed) in outcome.folders:
            _take_if_finished(job, _folder(job, outcome), outcome)
    return outcome


def run(jobs: Sequence[Job], *, parallel: int) -> Outcome:
    """Run what is not finished, ``parallel`` jobs at a time, and say what happens."""
    outcome = finished(jobs)
    outcome.skipped = len(outcome.records)
    waiting = [job for job in jobs if (job.cell, job.seed) not in outcome.records]
    total, done, began = len(waiting), 0, time.monotonic()
    if outcome.skipped:
        print(f"{outcome.skipped} of {len(jobs)} jobs are finished already", flush=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    running: dict[ForkServerProcess, tuple[Job, RunFolder, Path, float]] = {}
    try:
        while waiting or running:
            for job in _ready(waiting, outcome)[: parallel - len(running)]:
                waiting.remove(job)
                folder = _folder(job, outcome)
                log = folder.path.parent / ".logs" / f"{folder.key}.txt"
                log.parent.mkdir(parents=True, exist_ok=True)
                process = context.Process(target=_work, args=(overrides_of(job, outcome), str(log)))
                process.start()
                running[process] = (job, folder, log, time.monotonic())
            if not running:  # what is left starts from a run that failed
                outcome.failures += [f"{job.title}: not run, '{job.start}' has failed" for job in waiting]
                break
            for sentinel in wait([process.sentinel for process in running]):
                process = next(p for p in running if p.sentinel == sentinel)
                process.join()
                job, folder, log, started = running.pop(process)
                done += 1
                seconds = time.monotonic() - started
                left = (time.monotonic() - began) / done * (total - done)
                if process.exitcode == 0 and _take_if_finished(job, folder, outcome):
                    accuracy = outcome.records[job.cell, job.seed]["metrics"]["test"]["accuracy"]
                    said = f"test accuracy {accuracy:.4f}"
                else:
                    said = f"FAILED, see {log}"
                    outcome.failures.append(f"{job.title} (exit status {process.exitcode}, {log}):\n{_tail(log)}")
                print(f"[{done}/{total}] {job.title}: {said}   {seconds:.0f} s, {left:.0f} s left", flush=True)
    finally:
        for process in running:  # Ctrl-C: what is finished stays, what was running resumes
            process.terminate()
        for process in running:
            process.join()
    return outcome


def _ready(waiting: Sequence[Job], outcome: Outcome) -> list[Job]:
    return [job for job in waiting if job.start is None or (job.start, job.seed) in outcome.folders]


def _folder(job: Job, outcome: Outcome) -> RunFolder:
    return RunFolder.of(checked(overrides_of(job, outcome)))


def _take_if_finished(job: Job, folder: RunFolder, outcome: Outcome) -> bool:
    record = folder.read_record()
    if record is None or record["status"] != "finished":
        return False
    outcome.records[job.cell, job.seed] = record
    outcome.folders[job.cell, job.seed] = folder.path
    return True


def _tail(log: Path, lines: int = 5) -> str:
    try:
        text = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return "    (no log)"
    return "\n".join(f"    {line}" for line in text[-lines:])


def _work(overrides: list[str], log: str) -> None:
    """In the job's own process."""
    from peftlab.sweeps.worker import work

    with Path(log).open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.exit(work(overrides))
