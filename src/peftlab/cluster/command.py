"""What the commands that submit share: the pool's options for workers, and what is said. Imports no torch."""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path

from peftlab.cluster.settings import Cluster
from peftlab.cluster.submission import Planned, Submitted, planned, submit
from peftlab.cluster.work import Work
from peftlab.errors import counted

_OPTIONS = {
    "jobs": "--jobs",
    "devices_per_job": "--devices-per-job",
    "jobs_per_device": "--jobs-per-device",
    "threads_per_job": "--threads-per-job",
    "on_error": "--on-error",
    "retries": "--retries",
    "minutes_per_job": "--minutes-per-job",
}


def pool_options(given: argparse.Namespace) -> list[str]:
    """The options of ``peftlab sweep`` as typed, for the workers: a run that was killed is tried once more."""
    values = {name: getattr(given, name) for name in _OPTIONS}
    values["retries"] = 1 if values["retries"] is None else values["retries"]
    return [word for name, value in values.items() if value is not None for word in (_OPTIONS[name], f"{value}")]


def submit_and_tell(work: Work, cluster: Cluster, *, table: str = "") -> int:
    """Submit ``work`` and print what became of it; ``table`` is the command that makes its table."""
    done = submit(work, cluster, cwd=Path.cwd())
    for note in done.notes:
        print(note)
    print(_said(work, done))
    shown = os.path.relpath(work.folder)
    if done.to_run:
        print(f"watch it: peftlab status {shown}")
    elif table:
        print(f"its table: {table}")
    return 0


def tell_plan(work: Work, cluster: Cluster) -> int:
    """Print what would be submitted, without asking Slurm or writing anything."""
    print(_would(work, planned(work, cluster, cwd=Path.cwd())) if work.runs else _said(work, Submitted()))
    return 0


def _would(work: Work, plan: Planned) -> str:
    options = " \\\n".join(f"    {shlex.quote(option)}" for option in plan.options)
    return (
        f"would submit {counted(plan.workers, 'worker')} for {plan.to_run} of {counted(work.total, 'run')}, less those "
        "of an earlier call that are in the queue; TOKEN and HASH stand for what a submission makes:\n\n"
        f"sbatch --parsable \\\n{options} \\\n    {shlex.quote(str(plan.path))}\n\n"
        f"the script of each worker, {os.path.relpath(plan.path)}:\n\n{plan.script}"
    ).rstrip()


def _said(work: Work, done: Submitted) -> str:
    if not done.to_run:
        every = "the run" if work.total == 1 else f"all {work.total} runs"
        return f"{every} of {work.title} {'is' if work.total == 1 else 'are'} finished: nothing was submitted."
    living = ", ".join(f"{worker.id} {worker.state.lower()}" for worker in done.living)
    todo = f"{done.to_run} of {counted(work.total, 'run')} {'is' if done.to_run == 1 else 'are'}"
    if not done.sent:
        whose = "its" if done.to_run == 1 else "their"
        return f"{todo} to be made, and {whose} workers are in the queue already: {living}."
    more = f"; with those in the queue already: {living}" if living else ""
    workers = "1 worker" if done.sent == 1 else f"{done.sent} workers"
    return f"submitted {workers} as job {done.job}, for {done.to_run} of {counted(work.total, 'run')}{more}."
