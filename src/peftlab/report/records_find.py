"""What lies below the folders that were given: records, files of sweeps, logs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from peftlab.errors import RunError, nearest

SKIPPED = frozenset({"checkpoints", "logs", ".logs", "wandb", "lightning_logs", "report"})
"""Folders in which no run lies."""


@dataclass(frozen=True)
class LeftOut:
    """A file that a report cannot use."""

    path: str
    reason: str


@dataclass
class Found:
    """What lies below the folders that were given."""

    run_folders: list[tuple[str, frozenset[str]]] = field(default_factory=list)
    """Folders with a record.json, and the names of the files in them."""
    sweep_files: list[str] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    logs: set[str] = field(default_factory=set)
    """``<folder>/<key>`` of the runs that a sweep has left a log of."""
    seen: list[str] = field(default_factory=list)
    """A few names that are there instead of runs."""


def find(folders: Sequence[str]) -> Found:
    """Walk ``folders``: each may be a run's, a name's, or one of many names; a record.json stands for its folder.

    Raises:
        RunError: if one of them is no folder.
    """
    found = Found()
    visited: set[tuple[int, int]] = set()
    for given in folders:
        path = Path(given)
        if path.is_file() and path.name == "record.json":
            path = path.parent
        if path.is_file():
            raise RunError(f"'{given}' is a file. Give a folder of runs, or a run's record.json.")
        if not path.is_dir():
            there = [entry.name for entry in path.parent.iterdir() if entry.is_dir()] if path.parent.is_dir() else []
            raise RunError(f"there is no folder '{given}'.{nearest(path.name, there)}")
        _walk(str(path), found, visited)
    found.run_folders.sort()
    return found


def _walk(top: str, found: Found, visited: set[tuple[int, int]]) -> None:
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        try:
            stat = os.stat(folder)  # noqa: PTH116  of many thousands
            if (stat.st_dev, stat.st_ino) in visited:
                continue
            visited.add((stat.st_dev, stat.st_ino))
            with os.scandir(folder) as entries:
                here = list(entries)
        except OSError as error:
            found.left_out.append(LeftOut(folder, f"cannot be opened ({error.strerror})"))
            continue
        names = frozenset(entry.name for entry in here)
        if "record.json" in names:
            found.run_folders.append((folder, names))
            continue
        if ".logs" in names:
            with contextlib.suppress(OSError), os.scandir(f"{folder}/.logs") as entries:  # a log is only linked
                found.logs |= {f"{folder}/{entry.name.removesuffix('.txt')}" for entry in entries}
        if "sweep.json" in names:
            found.sweep_files.append(f"{folder}/sweep.json")
        waiting += [entry.path for entry in here if entry.is_dir(follow_symlinks=False) and entry.name not in SKIPPED]
        if len(found.seen) < 8:
            found.seen += sorted(names)[:8]
