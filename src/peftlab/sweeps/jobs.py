"""What a plan of runs hands to the pool that runs them, and what the pool tells it. Imports no torch.

    plan.ready(outcome) ─► jobs ─► pool ─► outcome (records, folders, failures) ─► plan.ready(outcome) ─► …

A plan decides *what* runs: a fixed list, the cells of a declared sweep, a search that asks for the next trial. The
pool (:mod:`peftlab.sweeps.pool`) decides *when and where*: which slot, which devices, what is finished already.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Job:
    """One run, as the command line would start it."""

    id: str
    """Names the job within its plan; two jobs of a plan never share one."""
    title: str
    """What people call it: ``LoRA, rank 2, seed 0``."""
    overrides: tuple[str, ...]
    """All of them, as for ``peftlab train``."""
    config_dir: str | None = None
    """``--config-dir``, an absolute path."""
    config_name: str = "train"
    arm: str | None = None
    """The cell of a declared sweep that it belongs to."""


@dataclass(frozen=True)
class Failure:
    """Why a job has no record."""

    job: Job
    reason: str
    """One line: ``exit status 2``, ``killed by signal 9``, ``not run: 'pretrain, seed 0' has failed``."""
    log: Path | None = None
    tail: str = ""
    """The last lines of its log."""


@dataclass
class Outcome:
    """What became of the jobs so far, by their ids."""

    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Records of finished runs, those that were finished before included."""
    folders: dict[str, Path] = field(default_factory=dict)
    """Folders of finished runs."""
    failures: dict[str, Failure] = field(default_factory=dict)
    skipped: set[str] = field(default_factory=set)
    """Ids of jobs that were finished before."""
    diverged: dict[str, str] = field(default_factory=dict)
    """Jobs whose training diverged, and where; they have ended, and are no failures."""
    pruned: dict[str, str] = field(default_factory=dict)
    """Jobs that their plan has stopped early (``stop_early``), and why; they are no failures."""
    elsewhere: set[str] = field(default_factory=set)
    """Ids of jobs that were left to other workers, which have them at work."""


class Plan(Protocol):
    """Decides which jobs there are; may wait for the outcome of some before it names others.

    A plan may also have ``stop_early(job_id, folder) -> str | None``, asked about each running job every second: the
    reason for which the job is to end now, or None. Such a job has no record, and is no failure.
    """

    def total(self) -> int:
        """Jobs in all, as far as is known now: those handed out and those still to come."""

    def ready(self, outcome: Outcome) -> Sequence[Job]:
        """Jobs that can start now and were not handed out before. Called again after each job that ends.

        An empty answer means: nothing now. The plan is done when it is empty and no job runs.
        """

    def blocked(self, outcome: Outcome) -> Sequence[Failure]:
        """Asked once, at the end: jobs that were never handed out, and why (what they start from has failed)."""


@dataclass
class FixedPlan:
    """A list of jobs, all known from the start and none waiting for another."""

    jobs: Sequence[Job]
    _handed_out: bool = False

    def total(self) -> int:
        """All of them."""
        return len(self.jobs)

    def ready(self, outcome: Outcome) -> Sequence[Job]:
        """All of them, once."""
        if self._handed_out:
            return []
        self._handed_out = True
        return self.jobs

    def blocked(self, outcome: Outcome) -> Sequence[Failure]:
        """None."""
        return []
