"""Files that are either whole or not there, and files that one process holds."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
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
    try:
        with replacing(path) as file:
            file.write(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise PeftlabError(
            f"cannot write {path}: {error.strerror or error}. Nothing there was changed; "
            "free some space or choose another folder."
        ) from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that becomes ``path`` when the block ends well; it is on the disk then, not only in memory.

    Raises:
        OSError: if it cannot be written; ``path`` is then as it was, as it is after any other error in the block.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~_umask())  # mkstemp's own files are for their owner only
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Put the names in ``folder`` on the disk too, where its file system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def open_regular(path: Path, flags: int = os.O_RDONLY) -> int:
    """A descriptor of ``path``, which is a file: reading a named pipe would wait for ever.

    Raises:
        OSError: if it cannot be opened, or is no file.
    """
    handle = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return handle


def open_lock(path: Path, *, create: bool = True) -> IO[str]:
    """The file ``path`` to be locked (:func:`take_lock`); what is in it stays.

    Args:
        path: the file.
        create: make it if it is not there.

    Raises:
        PeftlabError: if it is a link, or no file that a lock has been: what lies there is somebody's own.
        OSError: if it cannot be opened.
    """
    flags = os.O_NOFOLLOW | (os.O_RDWR | os.O_CREAT | os.O_APPEND if create else os.O_RDONLY)

    def opener(name: str, _: int) -> int:
        return open_regular(Path(name), flags)

    mode = "a+" if create else "r"
    try:
        file = open(path, mode, encoding="ascii", errors="replace", opener=opener)  # noqa: SIM115
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EINVAL, errno.ENXIO):
            raise
        what = "a link" if error.errno == errno.ELOOP else "no regular file"
        raise PeftlabError(f"{path} is {what}, and peftlab locks none through it. Remove it.") from error
    file.seek(0)
    if (found := file.read(40)) and not found.strip().isdigit() and not found.startswith('{"pid": '):
        file.close()
        raise PeftlabError(f"{path} is no lock of peftlab's: it holds other content. Move it away.")
    file.seek(0)
    return file


def take_lock(file: IO[str], kind: Literal["alone", "shared"] = "alone", *, attempts: int = 1) -> bool:
    """Whether this process got ``file`` for itself, or with others; it has it until the file is closed.

    Several attempts, 20 ms apart, outlast somebody who only looks. This is the kernel's own lock, and not that of the
    package filelock: where a file system has none, the latter makes a file whose existence is the lock, and that a
    killed process leaves behind; and it cannot be looked at without being taken.

    Raises:
        PeftlabError: if the file system has no locks, or grants them to everybody; the file is closed then.
    """
    wanted = fcntl.LOCK_EX if kind == "alone" else fcntl.LOCK_SH
    for attempt in range(attempts):
        if attempt:
            time.sleep(0.02)
        try:
            fcntl.flock(file, wanted | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        except OSError as error:
            file.close()
            raise PeftlabError(
                f"cannot lock {file.name} ({error.strerror or error}): two processes could write there at once. "
                "Choose a folder on a file system that has locks, as a local disk has."
            ) from error
        if kind == "alone":
            _require_kept(file)
        return True
    return False


def _require_kept(file: IO[str]) -> None:
    """Ask for the lock that this process has once more, which must fail: some file systems grant it without a look."""
    try:
        with open(open_regular(Path(file.name)), encoding="ascii") as second:
            if not os.path.samestat(os.fstat(file.fileno()), os.fstat(second.fileno())):
                return  # the folder was replaced by another
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # BlockingIOError, as it should be; or the file is gone
        return
    file.close()
    raise PeftlabError(
        f"cannot lock {file.name}: its file system grants every lock and keeps none, so that two processes could write "
        "there at once. Choose a folder on another file system, or let it be mounted with locks (Lustre: -o flock)."
    )


def exchange(first: Path, second: Path) -> None:
    """Let two folders beside each other change names; at once, where the system can (Linux, local file systems).

    Elsewhere ``second`` is called ``.replaced-<its name>`` for a moment, in which the process may die.

    Raises:
        OSError: if it cannot be done.
    """
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if renameat2 is None or renameat2(here, os.fsencode(first), here, os.fsencode(second), swap) != 0:
        between = replaced_name(second)
        second.rename(between)
        first.rename(second)
        between.rename(first)
    sync_folder(second.parent)


def replaced_name(path: Path) -> Path:
    """What :func:`exchange` calls ``path`` for a moment, where it must."""
    return path.with_name(f".replaced-{path.name}")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
