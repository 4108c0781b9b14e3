"""Launchers beside this one: what they, and ``peftlab status``, are told of its jobs, and what equal workers share.

The workers of one array (:mod:`peftlab.cluster`) are pools on one folder. Each ends when all that is left is at work in
others, and none tries again what another has seen fail. Imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from peftlab.sweeps import roster
from peftlab.sweeps.queued_run import QueuedRun

WORKER = "PEFTLAB_WORKER"
"""Environment variable of one of several equal workers: ``<array>_<number>``."""


class Beside:
    """What this launcher says to others, and hears of those of its array."""

    def __init__(self) -> None:
        self.array = os.environ.get(WORKER, "").partition("_")[0]
        """Of equal workers the array that they belong to; empty: this is none of them."""

    def announce(self, queue: Iterable[QueuedRun], coming: int) -> None:
        """Name the runs that are to be made, and how many more cannot be named yet."""
        by_folder: dict[Path, list[QueuedRun]] = {}
        for task in queue:
            by_folder.setdefault(task.folder.path.parent, []).append(task)
        for folder, tasks in by_folder.items():
            known = roster.read(folder)
            named = [roster.Entry(task.folder.key, task.title) for task in tasks]
            named = [entry for entry in named if not self._failed(known.get(entry.run))]
            roster.note(folder, [*named, roster.Entry("", str(max(0, coming)))])

    def failure(self, task: QueuedRun) -> str:
        """Why another worker of this array has seen the run fail; empty: none has, or it was begun here already."""
        if not self.array or task.attempts:
            return ""
        return self._failed(roster.read(task.folder.path.parent).get(task.folder.key))

    def note_failure(self, task: QueuedRun, reason: str) -> None:
        """Say that the run has failed here."""
        entry = roster.Entry(task.folder.key, task.title, " ".join(reason.split()), self.array)
        roster.note(task.folder.path.parent, [entry])

    def _failed(self, known: roster.Entry | None) -> str:
        return known.failed if known is not None and self.array and known.array == self.array else ""
