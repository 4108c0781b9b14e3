"""What was submitted for a folder: a line before sbatch is asked, and a line with what it answered. Imports no torch.

    intent, token ─► sbatch --comment=peftlab:<token> ─► submitted, token, job
                          │
                          └─ the launcher dies: the token is found in the queue, or in the names of logs, and adopted

Each line is on the disk before the next step. Whoever submits holds the ledger, and so does the sbatch that it has
started: should it die, the next launcher waits for that sbatch, and cannot look into the queue before it has answered.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from peftlab.errors import RunError
from peftlab.files import open_lock, sync_folder, take_lock
from peftlab.reading import read_bytes

PLACE = ".slurm"
"""The folder in ``<output_dir>/<name>`` that submitting writes into."""
ATTEMPTS = 6000
"""To get hold of the ledger, 20 ms apart: two minutes, as long as a busy sbatch takes."""


@dataclass
class Submission:
    """One array of workers."""

    token: str
    call: str
    """Names what is run: two submissions of one call share its work."""
    workers: int
    snapshot: str
    job: str | None = None
    """Slurm's number of the array; None as long as nobody knows it."""
    refused: str | None = None
    """What sbatch said instead of a number, or that it was never asked."""

    @property
    def open(self) -> bool:
        """Whether it is not known what became of it."""
        return self.job is None and self.refused is None


@dataclass
class Ledger:
    """The ledger of a folder."""

    folder: Path
    """``<output_dir>/<name>``."""
    lock: IO[str] | None = field(default=None, repr=False)

    @property
    def place(self) -> Path:
        """Where the ledger, scripts, logs and snapshots lie."""
        return self.folder / PLACE

    @property
    def file(self) -> Path:
        """A line an event."""
        return self.place / "ledger.jsonl"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the ledger; others that submit for this folder wait.

        Raises:
            RunError: if another launcher does not let go of it.
        """
        with self._locked() as self.lock:
            yield
        self.lock = None

    def _locked(self) -> IO[str]:
        path = self.place / "ledger.lock"
        while True:
            self.place.mkdir(parents=True, exist_ok=True)
            file = open_lock(path)
            if not take_lock(file, attempts=ATTEMPTS):
                file.close()
                raise RunError(f"another launcher has been submitting for {self.folder} for minutes. Wait for it.")
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    return file
            file.close()  # its launcher was refused, and has removed all that it had written

    def submissions(self) -> list[Submission]:
        """All of them, in their order; a line that a launcher was killed in is not there.

        Raises:
            RunError: if it is no ledger.
        """
        found: dict[str, Submission] = {}
        try:
            lines = read_bytes(self.file).splitlines()
        except FileNotFoundError:
            return []
        for line in lines:
            try:
                said = json.loads(line)
            except ValueError:
                continue
            try:
                if said["event"] == "intent":
                    about = (said[name] for name in ("token", "call", "workers", "snapshot"))
                    found[said["token"]] = Submission(*about)
                else:
                    found[said["token"]].job = said.get("job")
                    found[said["token"]].refused = said.get("refused")
            except (KeyError, TypeError) as error:
                raise RunError(
                    f"{self.file} is no ledger of peftlab's: {line.decode(errors='replace')[:80]}"
                ) from error
        return list(found.values())

    def intend(self, call: str, workers: int, snapshot: str) -> Submission:
        """Say that an array is about to be submitted."""
        made = Submission(secrets.token_hex(6), call, workers, snapshot)
        self._note(event="intent", token=made.token, call=call, workers=workers, snapshot=snapshot)
        return made

    def submitted(self, one: Submission, job: str, *, adopted: bool = False) -> None:
        """Say which number it has got."""
        one.job = job
        self._note(event="adopted" if adopted else "submitted", token=one.token, job=job)

    def refused(self, one: Submission, why: str) -> None:
        """Say that it does not exist."""
        one.refused = why
        self._note(event="refused", token=one.token, refused=why)

    def _note(self, **said: Any) -> None:
        line = json.dumps({"time": round(time.time(), 3), **said}) + "\n"
        with self.file.open("a+b") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else f"\n{line}"
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
        sync_folder(self.place)

    def logs(self) -> dict[str, str]:
        """Token → job, of the workers that have begun: their logs are named so."""
        found: dict[str, str] = {}
        with contextlib.suppress(OSError):
            for path in (self.place / "logs").iterdir():
                token, _, job = path.stem.partition("-")
                if job:
                    found[token] = job.partition("_")[0]
        return found
