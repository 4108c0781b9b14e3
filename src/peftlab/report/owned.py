"""Files of a report in a folder that somebody chose: only what an earlier report wrote there is replaced or removed.

Which files those are says a small file beside them, by the hash of what was written: a file of the same name that it
does not know, or that was edited since, is somebody's own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftlab.errors import ConfigError, listed
from peftlab.files import write_atomically
from peftlab.reading import Unreadable, read_bytes, read_json

MANIFEST = ".peftlab-report.json"
PNG_MARK = {"Software": "peftlab"}
"""Metadata of a single picture that may go anywhere, and be replaced there."""


def write_report(target: Path, files: Mapping[str, str | bytes], *, chosen: bool, kinds: tuple[str, ...] = ()) -> None:
    """Write ``files`` into the folder ``target``.

    Args:
        target: made where it is not there.
        files: content by name.
        chosen: whether the folder was named by the user, and not peftlab's own for reports.
        kinds: endings of names that are all among ``files``: another such file of an earlier report is removed.

    Raises:
        ConfigError: naming files that are there and are no earlier report's; nothing is written then.
    """
    contents = {name: one.encode() if isinstance(one, str) else one for name, one in files.items()}
    known = _known(target)
    if known is None:
        known = {}
        foreign = _existing(target, contents) if chosen and not _of_an_earlier_version(target) else []
    else:
        foreign = [
            name
            for name in _existing(target, contents)
            if _hash(read_bytes(target / name)) not in (*known.get(name, ()), _hash(contents[name]))
        ]
    if foreign:
        raise ConfigError(
            f"{target} holds {listed(foreign)}, which no report of peftlab wrote there as it is now. Nothing was "
            "written: move it away, or choose another folder with --to."
        )
    new = {name: [_hash(content)] for name, content in contents.items()}
    # killed between two files, the next report still knows both what was there and what came
    _remember(target, known | {name: [*known.get(name, ()), *hashes] for name, hashes in new.items()})
    for name, content in contents.items():
        write_atomically(target / name, content)
    known |= new
    for name in known.keys() - new.keys():  # a comparison with a baseline that is none any more would be believed
        if name.endswith(kinds) and Path(name).name == name and (target / name).is_file():
            if _hash(read_bytes(target / name)) in known[name]:
                (target / name).unlink()
            del known[name]
    _remember(target, known)


def require_own_picture(path: Path) -> None:
    """Refuse to replace a picture that peftlab did not draw.

    Raises:
        ConfigError: if there is one.
    """
    if path.exists() and b"Software\0peftlab" not in read_bytes(path)[:4096]:
        raise ConfigError(
            f"{path} is there, and no picture of peftlab's. Move it away, or choose another name with --to."
        )


def _existing(target: Path, names: Mapping[str, Any]) -> list[str]:
    return [name for name in names if (target / name).exists()]


def _known(target: Path) -> dict[str, list[str]] | None:
    try:
        found = read_json(target / MANIFEST)["files"]
        return {str(name): [str(one) for one in hashes] for name, hashes in found.items()}
    except (OSError, Unreadable, LookupError, TypeError, AttributeError):
        return None


def _remember(target: Path, known: Mapping[str, list[str]]) -> None:
    write_atomically(target / MANIFEST, json.dumps({"format": 1, "files": known}, indent=1, sort_keys=True) + "\n")


def _of_an_earlier_version(target: Path) -> bool:
    """Whether the folder holds a report of a version that left no list of its files."""
    try:
        content = read_json(target / "report.json")
    except (OSError, Unreadable):
        return False
    return isinstance(content, dict) and {"format", "peftlab", "metric", "groups"} <= content.keys()


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
