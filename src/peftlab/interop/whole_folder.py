"""A folder that is there with all of its files, or not at all. Imports no torch."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from peftlab.errors import PeftlabError


def require_free(target: Path, key: str) -> None:
    """Raise PeftlabError, naming the option ``key``, if there is something at ``target`` already."""
    if target.is_dir() and not any(target.iterdir()):
        return
    if target.exists() or target.is_symlink():
        what = "is a folder with files in it" if target.is_dir() else "is there already and is no folder"
        raise PeftlabError(f"{key} {target} {what}, which would be overwritten. Give a new or an empty folder.")


@contextmanager
def whole_folder(target: Path, key: str) -> Iterator[Path]:
    """A new folder to write into, which becomes ``target`` at the end; after an error nothing is left.

    Raises:
        PeftlabError: in one line, if ``target`` is taken, or cannot be written, or the disk is full.
    """
    require_free(target, key)
    temporary: Path | None = None
    made = [folder for folder in target.parents if not folder.exists()]  # the innermost first
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))  # beside it: one file system
        yield temporary
        temporary.chmod(0o777 & ~_umask())  # mkdtemp's own folders are for their owner only
        for file in filter(Path.is_file, temporary.rglob("*")):
            file.chmod(0o666 & ~_umask())  # so are the files that safetensors writes
        temporary.replace(target)
        made = []
    except OSError as error:
        raise PeftlabError(
            f"cannot write {key} {target}: {error.strerror or error}. Nothing was left there. {way_out(error.errno)}"
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        with suppress(OSError):  # somebody else has put something there since
            for folder in made:
                folder.rmdir()


def way_out(number: int | None) -> str:
    """What to do about the operating system's error ``number``."""
    if number in (errno.ENOSPC, errno.EDQUOT):
        return "Free some space, or choose a folder on another disk."
    return "Choose another folder."


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
