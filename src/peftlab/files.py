"""Files that are either whole or not there."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

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


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
