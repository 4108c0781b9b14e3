"""Files that are either whole or not there, and files that one process holds."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import time
from pathlib import Path
from typing import IO, Literal

from peftlab.errors import PeftlabError


def cache_folder() -> Path:
    """``$PEFTLAB_CACHE``, or ``~/.cache/peftlab``: things that can be made again."""
    given = os.environ.get("PEFTLAB_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "peftlab"


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write ``content`` so that ``path`` is the old file or the whole new one, whenever the process dies.

    Raises:
        PeftlabError: if the folder cannot be written or the disk is full; ``path`` is then as it was.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~_umask())  # mkstemp's own files are for their owner only
        Path(temporary).replace(path)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise PeftlabError(
            f"cannot write {path}: {error.strerror or error}. Nothing there was changed; "
            "free some space or choose another folder."
        ) from error


def take_lock(file: IO[str], kind: Literal["alone", "shared"] = "alone", *, attempts: int = 1) -> bool:
    """Whether this process got ``file`` for itself, or with others; it has it until the file is closed.

    Several attempts, 20 ms apart, outlast somebody who only looks. This is the kernel's own lock, and not that of the
    package filelock: where a file system has none, the latter makes a file whose existence is the lock, and that a
    killed process leaves behind; and it cannot be looked at without being taken.
    """
    wanted = fcntl.LOCK_EX if kind == "alone" else fcntl.LOCK_SH
    for attempt in range(attempts):
        if attempt:
            time.sleep(0.02)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, wanted | fcntl.LOCK_NB)
            return True
    return False


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
