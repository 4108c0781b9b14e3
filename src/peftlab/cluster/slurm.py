"""Slurm's own programs: sbatch, squeue and scontrol. Imports no torch."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from peftlab.errors import ConfigError, PeftlabError
from peftlab.training.ranks import of_its_own

PATIENCE = 60.0
"""Seconds that squeue may take; of a busy controller."""
MARK = "peftlab:"
"""What the comment of our jobs begins with; a token follows."""

WAITING = (
    "PENDING",
    "REQUEUED",
    "REQUEUE_HOLD",
    "REQUEUE_FED",
    "RESV_DEL_HOLD",
    "SPECIAL_EXIT",
    "SUSPENDED",
    "STOPPED",
)
AT_WORK = ("RUNNING", "CONFIGURING", "COMPLETING", "SIGNALING", "STAGE_OUT", "RESIZING", "EXPEDITING")
LIVING = (*WAITING, *AT_WORK)
"""States of a job that will run, runs, or is just ending."""
_KEPT = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT", "SLURM_UMASK")
"""What a user says to Slurm by its environment; the rest of SLURM_… is what an allocation says to its own jobs."""


class SlurmError(PeftlabError):
    """Slurm does not answer, or not with what was asked for."""


@dataclass(frozen=True)
class Worker:
    """A task of an array, as squeue sees it."""

    id: str
    """``45_0``."""
    state: str
    reason: str
    """Why it waits; ``None`` of one that does not."""
    token: str
    nodes: str = ""

    @property
    def array(self) -> str:
        """``45``."""
        return self.id.partition("_")[0]

    @property
    def living(self) -> bool:
        """Whether it will run, runs, or is just ending."""
        return self.state in LIVING


def require_sbatch() -> None:
    """Refuse a machine that submits to no Slurm.

    Raises:
        ConfigError: if there is no sbatch.
    """
    for program in ("sbatch", "squeue"):
        if shutil.which(program) is None:
            raise ConfigError(
                f"there is no {program} on the PATH: this machine submits to no Slurm. Call it on a login node of the "
                "cluster, or run it here, without --on slurm; --dry-run shows what would be submitted."
            )


def queue(patience: float = PATIENCE) -> list[Worker]:
    """This user's workers that Slurm knows of, ended ones too as long as it does (five minutes, usually).

    Raises:
        SlurmError: if squeue does not answer: what is in the queue is not known then.
    """
    command = ["squeue", "--noheader", "--array", "--states=all", f"--user={os.getuid()}"]
    command += ["--format=%i|%T|%r|%N|%k"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=patience, check=False, env=environment())
    except FileNotFoundError as error:
        raise SlurmError("there is no squeue on the PATH.") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SlurmError(f"squeue does not answer: {error}.") from error
    if done.returncode != 0:
        raise SlurmError(f"squeue does not answer: {in_one_line(done.stderr) or f'exit status {done.returncode}'}")
    found = []
    for line in done.stdout.splitlines():
        parts = line.split("|", 4)
        if len(parts) == 5 and parts[4].startswith(MARK):
            number, state, reason, nodes, comment = (part.strip() for part in parts)
            found.append(Worker(number, state, reason, comment.removeprefix(MARK), nodes))
    return found


def sbatch(options: Sequence[str], script: str, *, keeps: int) -> str:
    """Submit ``script``; the number that the job has got.

    Args:
        options: of sbatch.
        script: its path.
        keeps: a descriptor that sbatch keeps open as long as it runs, whoever dies.

    Raises:
        SlurmError: in sbatch's own words. That it failed does not say that there is no job: its answer may be lost.
    """
    command = ["sbatch", "--parsable", *options, script]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
        pass_fds=(keeps,),
        stdin=subprocess.DEVNULL,
    )
    job = done.stdout.strip().partition(";")[0]
    if done.returncode != 0 or not job.isdigit():
        raise SlurmError(in_one_line(done.stderr) or f"sbatch: exit status {done.returncode} {done.stdout.strip()}")
    return job


def environment() -> dict[str, str]:
    """This process's own for Slurm's programs: whoever submits from inside an allocation passes nothing of it on."""
    own = of_its_own(os.environ)
    return {name: value for name, value in own.items() if not name.startswith("SLURM_") or name in _KEPT}


def in_one_line(text: str) -> str:
    """What a program has said, without line ends."""
    return " ".join(text.split())
