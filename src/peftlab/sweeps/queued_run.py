"""One run that the pool has to make: its folder, log and attempts, and what is said of one that failed."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftlab.config import RunConfig
from peftlab.records.divergence import ENDED
from peftlab.records.folder import RunFolder
from peftlab.signals import CTRL_C, RESUMABLE
from peftlab.sweeps import processes
from peftlab.sweeps.job_spec import OUT_OF_MEMORY
from peftlab.sweeps.jobs import Job
from peftlab.sweeps.slots import Slot


@dataclass
class QueuedRun:
    """A run to make, for one job or for several that come to the same run."""

    jobs: list[Job]
    config: RunConfig
    folder: RunFolder
    attempts: int = 0
    stamp: tuple[int, int] | None = None
    """The record before the first attempt: a forced run must leave another one."""
    slot: Slot | None = None
    ended: bool = False
    failure: str = ""
    pruned: str = ""
    """Why the plan has stopped it early."""
    kill_at: float = 0.0
    """When a stopped job that has not ended by itself is killed."""
    since: float = 0.0
    """When this attempt began, on the monotonic clock."""
    overdue: bool = False
    """Whether this attempt was killed because its time was over."""

    @property
    def title(self) -> str:
        """That of its first job."""
        return self.jobs[0].title

    @property
    def log(self) -> Path:
        """What its process prints: ``.logs/<key>.txt`` beside its folder."""
        return self.folder.path.parent / ".logs" / f"{self.folder.key}.txt"

    def record_stamp(self) -> tuple[int, int] | None:
        """What tells the record that is there from a later one; None if there is none."""
        try:
            stat = self.folder.record.stat()
        except OSError:
            return None
        return stat.st_ino, stat.st_mtime_ns

    def record(self) -> dict[str, Any] | None:
        """The record of a run that has ended, finished or diverged; of a forced run, only a new one."""
        if self.config.force and self.record_stamp() == self.stamp:
            return None
        record = self.folder.read_record()
        return record if record is not None and record["status"] in ENDED else None


def reason_of(status: int) -> str:
    """What an exit status without a record means."""
    if status == 0:
        return "ended without a record"
    if status == processes.SERVER_LOST:
        return "its server died"
    if status == OUT_OF_MEMORY:
        return "the GPU's memory is too small for it"
    if status in (RESUMABLE, CTRL_C):
        return "interrupted; it goes on where it was"
    if status > 0:
        return f"exit status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = "unknown"
    return f"killed by signal {-status} ({name})"


def tail_of(log: Path | None, lines: int = 5) -> str:
    """The last lines of a log."""
    if log is None:
        return ""
    text = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return "\n".join(text[-lines:])
