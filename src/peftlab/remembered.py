"""Caches of small things that can be made again: what is damaged, or of a file that has changed, is not there."""

from __future__ import annotations

import contextlib
import hashlib
import time
from pathlib import Path

from peftlab.errors import PeftlabError
from peftlab.files import write_atomically
from peftlab.reading import read_bytes

SETTLED_SECONDS = 2.0
"""A file that changed so lately may change once more within one tick of its file system's clock."""


def recall(path: Path) -> bytes | None:
    """What :func:`remember` has written as ``path``; None if that is not there whole."""
    try:
        digest, newline, content = read_bytes(path).partition(b"\n")
    except OSError:
        return None
    return content if newline and digest == _digest(content) else None


def remember(path: Path, content: bytes) -> None:
    """Write ``content`` with its checksum; a cache that cannot be written costs time only."""
    with contextlib.suppress(PeftlabError):
        write_atomically(path, _digest(content) + b"\n" + content)


def version_of(path: Path) -> str:
    """What is another one when ``path`` has other content: size, times and number of the file.

    The time of the last write can be set back (``cp -p``, ``rsync -t``, ``tar``), that of the last change cannot.
    """
    stat = path.stat()
    return f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"


def settled(path: Path) -> bool:
    """Whether ``path`` was last changed long enough ago for :func:`version_of` to tell the next change."""
    return time.time() - path.stat().st_ctime > SETTLED_SECONDS


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()
