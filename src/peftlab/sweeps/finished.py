"""What is there already of a plan's jobs. Imports no torch."""

from __future__ import annotations

from typing import Any

from peftlab.config import RunConfig
from peftlab.errors import PeftlabError
from peftlab.records.divergence import ENDED, STATUS, in_words
from peftlab.records.find import known_folder
from peftlab.records.folder import RunFolder
from peftlab.sweeps.cache import ConfigCache
from peftlab.sweeps.jobs import Job, Outcome, Plan


def finished(plan: Plan, *, to_run: bool = False) -> Outcome:
    """What is there already; runs nothing. ``plan`` cannot be used again.

    Args:
        plan: the jobs.
        to_run: leave out the runs that ``force=true`` would make again.
    """
    outcome = Outcome()
    with ConfigCache() as cache:
        while jobs := plan.ready(outcome):
            cache.refresh()
            for job in jobs:
                try:
                    config = cache.config(job)
                    folder = folder_of(job, config)
                    if not (to_run and config.force):
                        take(outcome, job, folder, folder.read_record(), before=True)
                except PeftlabError:  # the run it starts from is gone, a damaged record: not finished
                    continue
    return outcome


def folder_of(job: Job, config: RunConfig) -> RunFolder:
    """Where the job's run is: a declared sweep keeps all of its own together, others are known under any name."""
    return known_folder(config) if job.arm is None else RunFolder.of(config)


def take(outcome: Outcome, job: Job, folder: RunFolder, record: dict[str, Any] | None, *, before: bool) -> bool:
    """Put the record of a job into ``outcome``, if the run has ended; return whether it has."""
    if record is None or record["status"] not in ENDED:
        return False
    if record["status"] == STATUS:
        outcome.diverged[job.id] = in_words(record)
    else:
        outcome.records[job.id], outcome.folders[job.id] = record, folder.path
    if before:
        outcome.skipped.add(job.id)
    return True
