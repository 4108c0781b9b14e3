"""Submitting work: what lives in the queue already is found, and only what is missing is sent. Imports no torch."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from peftlab.cluster import slurm, snapshot
from peftlab.cluster.ledger import Ledger, Submission
from peftlab.cluster.script import worker_script
from peftlab.cluster.settings import Cluster
from peftlab.cluster.slurm import SlurmError, Worker
from peftlab.cluster.work import Work
from peftlab.errors import ConfigError
from peftlab.files import write_atomically
from peftlab.sweeps import roster

LOST_ANSWERS = ("timed out", "Unable to contact", "Communication", "connection", "Connection")
"""What sbatch says when its answer, and not the job, may be lost."""
LOOKS = 5
"""How often the queue is looked at then, a second apart, until it is believed that there is no job."""


@dataclass(frozen=True)
class Planned:
    """What a call would submit, as far as it can be said without asking Slurm."""

    workers: int
    """Fewer by those of an earlier submission that are in the queue."""
    to_run: int
    options: tuple[str, ...]
    """Of sbatch."""
    script: str
    """The text of each worker's script."""
    path: Path
    """Where that would lie."""


@dataclass(frozen=True)
class Submitted:
    """What became of a call."""

    sent: int = 0
    """Workers that were submitted now."""
    job: str | None = None
    living: tuple[Worker, ...] = ()
    """Those of earlier submissions."""
    to_run: int = 0
    """Runs that are missing."""
    notes: tuple[str, ...] = field(default=())


def planned(work: Work, cluster: Cluster, *, cwd: Path) -> Planned:
    """What :func:`submit` would do, written nowhere; hash and token of a submission are not known before.

    Raises:
        ConfigError: if the workers do not fit the work.
    """
    _require_room(work, cluster)
    to_run, place = _to_run(work), Ledger(work.folder).place
    path = place / "TOKEN.sh"
    count = _workers(work, cluster, to_run)
    options, script = _worker(work, cluster, count, cwd, path, place / "snapshots" / "HASH")
    return Planned(count, to_run, tuple(options), script, path)


def submit(work: Work, cluster: Cluster, *, cwd: Path) -> Submitted:
    """Submit the workers that ``work`` lacks.

    Raises:
        ConfigError: if the workers do not fit the work.
        SlurmError: in Slurm's own words; nothing was submitted then, or the next call finds it.
    """
    _require_room(work, cluster)
    if not work.runs:
        return Submitted()
    slurm.require_sbatch()
    to_run = _to_run(work)
    ledger = Ledger(work.folder)
    new = [path for path in (work.folder, *work.folder.parents) if not path.exists()]
    listed = roster.read(work.folder)
    with ledger.held():
        try:
            known = _queue()
            living, notes = _living(ledger, work.call, known)
            if (missing := _workers(work, cluster, to_run) - len(living)) <= 0:
                return Submitted(living=tuple(living), to_run=to_run, notes=tuple(notes))
            roster.note(work.folder, work.runs)
            job, snapshot_hash = _send(ledger, work, cluster, missing, cwd)
            _prune(ledger, known, snapshot_hash)
            others = {one.snapshot for one in ledger.submissions() if one.token in {w.token for w in living}}
            if others - {snapshot_hash}:
                notes.append("the code has changed since: workers that are in the queue run the code of then.")
        except SlurmError:
            _leave_nothing(ledger, new, listed)
            raise
    return Submitted(missing, job, tuple(living), to_run, tuple(notes))


def _to_run(work: Work) -> int:
    return sum(int(entry.title) if not entry.run else 1 for entry in work.runs)


def _workers(work: Work, cluster: Cluster, to_run: int) -> int:
    """At most so many at a time."""
    return min(cluster.workers, to_run, work.most_workers or to_run)


def _queue() -> list[Worker]:
    try:
        return slurm.queue()
    except SlurmError as error:
        raise SlurmError(
            f"{str(error).rstrip('.')}. Nothing was submitted, since workers may be in the queue already. Call it on a "
            "login node of the cluster, or again when Slurm answers; --dry-run shows what would be submitted."
        ) from error


def _require_room(work: Work, cluster: Cluster) -> None:
    if work.nodes != cluster.nodes:
        raise ConfigError(
            f"trainer.num_nodes={work.nodes}, and a worker has nodes={cluster.nodes}: "
            f"--set nodes={work.nodes} gives it as many."
        )


def _living(ledger: Ledger, call: str, known: list[Worker]) -> tuple[list[Worker], list[str]]:
    """Workers of ``call`` that will run or run, those of lost answers adopted; what is to be said of it."""
    notes = []
    logs = ledger.logs()
    for one in ledger.submissions():
        if not one.open:
            continue
        if (job := _job_of(one, known) or logs.get(one.token)) is not None:
            ledger.submitted(one, job, adopted=True)
            notes.append(f"found job {job}, whose launcher ended before it knew the number.")
        else:
            ledger.refused(one, "its launcher ended before sbatch took it")
    tokens = {one.token for one in ledger.submissions() if one.call == call}
    return [worker for worker in known if worker.token in tokens and worker.living], notes


def _prune(ledger: Ledger, known: list[Worker], latest: str) -> None:
    """Remove copies of the code that are beyond use; what ended lately, too, may be queued again by hand."""
    tokens = {worker.token for worker in known}
    needed = {one.snapshot for one in ledger.submissions() if one.open or one.token in tokens}
    with contextlib.suppress(OSError):
        snapshot.prune(ledger.place / "snapshots", needed | {latest}, ledger.folder)


def _job_of(one: Submission, known: list[Worker]) -> str | None:
    return next((worker.array for worker in known if worker.token == one.token), None)


def _send(ledger: Ledger, work: Work, cluster: Cluster, count: int, cwd: Path) -> tuple[str, str]:
    """Submit one array; its number, and the hash of the snapshot."""
    copy = snapshot.take(ledger.place / "snapshots", work.files)
    (ledger.place / "logs").mkdir(exist_ok=True)
    one = ledger.intend(work.call, count, copy.name)
    script = ledger.place / f"{one.token}.sh"
    options, text = _worker(work, cluster, count, cwd, script, copy)
    write_atomically(script, text)
    script.chmod(0o755)
    assert ledger.lock is not None
    try:
        job = slurm.sbatch(options, str(script), keeps=ledger.lock.fileno())
    except SlurmError as error:
        job = _taken_all_the_same(ledger, one, error)
    ledger.submitted(one, job)
    return job, copy.name


def _worker(work: Work, cluster: Cluster, count: int, cwd: Path, script: Path, copy: Path) -> tuple[list[str], str]:
    """What sbatch is told of an array of ``count`` workers, and the text of their ``script``, called by its token."""
    options = [
        f"--job-name={work.title}",
        f"--comment={slurm.MARK}{script.stem}",
        f"--array=0-{count - 1}",
        f"--output={_literal(script.parent / 'logs')}/{script.stem}-%A_%a.txt",
        "--open-mode=append",
        "--requeue",
        f"--signal=B:USR1@{cluster.lead_seconds}",
        f"--ntasks-per-node={work.tasks}",
        f"--chdir={cwd}",
        *cluster.options(),
    ]
    text = worker_script(
        title=work.title,
        cluster=cluster,
        command=work.command(copy),
        code=copy / "code",
        cwd=cwd,
        submitted=["sbatch", *options, str(script)],
        python=cluster.python or ("python" if cluster.container else sys.executable),
    )
    return options, text


def _taken_all_the_same(ledger: Ledger, one: Submission, error: SlurmError) -> str:
    """The number of a job whose answer was lost.

    Raises:
        SlurmError: ``error``, if there is no such job; or that it is not known.
    """
    lost = any(words in str(error) for words in LOST_ANSWERS)
    for look in range(LOOKS if lost else 1):
        time.sleep(1 if look else 0)
        try:
            if (job := _job_of(one, slurm.queue())) is not None:
                return job
        except SlurmError as second:
            raise SlurmError(
                f"{error} Whether Slurm took the job is not known ({second}); the same command finds out."
            ) from error
    ledger.refused(one, str(error))
    (ledger.place / f"{one.token}.sh").unlink(missing_ok=True)
    raise error


def _leave_nothing(ledger: Ledger, new: list[Path], listed: dict[str, roster.Entry]) -> None:
    """Remove what was written if no job of the folder was ever taken; of folders, those that were not there before."""
    if any(one.refused is None for one in ledger.submissions()):
        return
    shutil.rmtree(ledger.place, ignore_errors=True)
    if not listed:
        roster.remove(ledger.folder)
    for path in new:
        with contextlib.suppress(OSError):
            path.rmdir()


def _literal(path: Path) -> str:
    """``path`` in a pattern of Slurm's, to which percent signs mean something."""
    return str(path).replace("%", "%%")
