"""Who holds a run: what its lock says of the process that has it, and whether that is still heard of. Imports no torch.

The kernel's lock decides between processes of one machine, and of several where the file system carries locks between
them. Where it keeps them to each machine, the lock's file says who holds the run, and its time moves while that lives.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

BEAT_SECONDS = 15.0
"""How often a holder is heard of."""
SILENT_SECONDS = 60.0
"""After so long without a sign a holder on another machine is gone."""


@dataclass(frozen=True)
class Holder:
    """A process that holds a run."""

    pid: str = "?"
    host: str = ""
    """The machine that it runs on; empty: an earlier peftlab wrote the lock."""
    job: str = ""
    """The job of Slurm that it belongs to, as ``45_0``; empty: none."""

    @classmethod
    def here(cls) -> Holder:
        """This process."""
        return cls(str(os.getpid()), socket.gethostname(), slurm_job())

    @classmethod
    def read(cls, file: IO[str]) -> Holder | None:
        """What the lock ``file`` says; None if it says nothing, as after a run that has let go of it."""
        file.seek(0)
        text = file.read(1000).strip()
        if not text or text.isdigit():
            return cls(text) if text else None
        try:
            found = json.loads(text)
            return cls(*(str(found[name]) for name in ("pid", "host", "job")))
        except (ValueError, KeyError, TypeError):
            return cls()

    @property
    def elsewhere(self) -> bool:
        """Whether it is on another machine, as far as is known."""
        return self.host not in ("", socket.gethostname())

    def __str__(self) -> str:
        where = f" on {self.host}" if self.elsewhere or self.job else ""
        return f"{self.pid}{where}{f', Slurm job {self.job}' if self.job else ''}"


def slurm_job(environment: Mapping[str, str] = os.environ) -> str:
    """The job of Slurm that this process belongs to, as squeue calls it; empty: none."""
    if "SLURM_ARRAY_JOB_ID" in environment:
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment.get('SLURM_ARRAY_TASK_ID', '0')}"
    return environment.get("SLURM_JOB_ID", "")


@contextmanager
def told(file: IO[str]) -> Iterator[None]:
    """Say in the lock ``file`` that this process holds it, and that it lives; take that back at the end."""
    file.seek(0)
    file.truncate(0)
    file.write(json.dumps(asdict(Holder.here())))
    file.flush()
    ended = threading.Event()
    beat = threading.Thread(target=_beat, args=(file.fileno(), ended), daemon=True, name="heartbeat")
    beat.start()
    try:
        yield
    finally:
        ended.set()
        beat.join()  # its descriptor may soon be another file's
        with contextlib.suppress(OSError):
            file.truncate(0)


def _beat(descriptor: int, ended: threading.Event) -> None:
    while not ended.wait(BEAT_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(descriptor)


def heard_of(file: IO[str]) -> bool:
    """Whether the holder of the lock ``file`` has given a sign lately, by the file system's own clock."""
    last = os.fstat(file.fileno()).st_mtime
    try:
        with tempfile.TemporaryFile(dir=Path(file.name).parent) as now:
            return os.fstat(now.fileno()).st_mtime - last < SILENT_SECONDS
    except OSError:  # a folder that may only be read
        return time.time() - last < SILENT_SECONDS
