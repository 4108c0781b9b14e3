"""Which runs a folder is to have, for ``peftlab status``: noted by every launcher. Imports no torch.

``<output_dir>/<name>/.jobs.jsonl``: a line for each run that a plan has named, and one for each that failed, with the
reason. It decides nothing: what has a record is done, and what is locked is at work, whatever stands here.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from peftlab.errors import PeftlabError
from peftlab.files import open_lock, take_lock
from peftlab.reading import read_bytes

NAME = ".jobs.jsonl"
_LOCK = ".jobs.lock"
ATTEMPTS = 50
"""At 20 ms: a second, which no writer takes."""


@dataclass(frozen=True)
class Entry:
    """A run that was named."""

    run: str
    """Its key, which is the name of its folder; empty: ``title`` runs more, which are named when others have ended."""
    title: str = ""
    failed: str = ""
    """Why it has no record, if its last attempt failed."""
    array: str = ""
    """The array of workers in which it did: the others of that array leave it at that."""


def note(folder: Path, entries: Iterable[Entry]) -> None:
    """Add what is new of ``entries``. A disk that is full, or a folder that may not be written, costs the list only."""
    with contextlib.suppress(OSError, PeftlabError), _held(folder):
        known = read(folder)
        new = [entry for entry in entries if known.get(entry.run) != entry]
        if not new:
            return
        text = "".join(f"{json.dumps(asdict(entry))}\n" for entry in new)
        with (folder / NAME).open("a+b") as file:
            if file.tell() and _last_byte(file) != b"\n":  # a launcher was killed while it wrote
                text = f"\n{text}"
            file.write(text.encode())


def read(folder: Path) -> dict[str, Entry]:
    """Key → the last that was noted of the run; nothing where nobody has noted anything."""
    found: dict[str, Entry] = {}
    try:
        lines = read_bytes(folder / NAME).splitlines()
    except OSError:
        return found
    for line in lines:
        with contextlib.suppress(ValueError, TypeError):  # half a line
            entry = Entry(**json.loads(line))
            found[entry.run] = entry
    return found


def remove(folder: Path) -> None:
    """Take the list away."""
    for name in (NAME, _LOCK):
        (folder / name).unlink(missing_ok=True)


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with open_lock(folder / _LOCK) as lock:
        take_lock(lock, attempts=ATTEMPTS)
        yield


def _last_byte(file: IO[bytes]) -> bytes:
    file.seek(-1, 2)
    return file.read(1)
