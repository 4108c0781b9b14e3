"""Where in an epoch a checkpoint was written, and what those inside epochs are called. Imports no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_INSIDE = re.compile(r"epoch-(\d+)-batch-(\d+)\.ckpt")


@dataclass(frozen=True, order=True)
class Place:
    """Where training is: epochs that are done, and batches of the next."""

    epoch: int = 0
    batches: int = 0


def place_of(checkpoint: dict[str, Any]) -> Place:
    """Where training goes on after ``checkpoint``."""
    if (inside := checkpoint.get("place")) is not None:
        return Place(inside["epoch"], inside["batches"])
    return Place(checkpoint["history"][-1]["epoch"] + 1)


def step_checkpoint(folder: Path, epoch: int, batches: int) -> Path:
    """The name of a checkpoint inside ``epoch``, from 0, after ``batches`` of it; people count from 1."""
    return folder / f"epoch-{epoch + 1}-batch-{batches}.ckpt"


def place_in_name(path: Path) -> Place:
    """What :func:`step_checkpoint` was given."""
    match = _INSIDE.fullmatch(path.name)
    assert match is not None
    return Place(int(match[1]) - 1, int(match[2]))


def step_checkpoints(folder: Path) -> list[Path]:
    """Those inside epochs, the newest first."""
    found = [path for path in folder.glob("epoch-*.ckpt") if _INSIDE.fullmatch(path.name)]
    return sorted(found, key=place_in_name, reverse=True)


def remove_older(folder: Path, newest: Path | None = None, *, keep: int) -> None:
    """Remove checkpoints inside epochs but the last ``keep``, and ``newest``."""
    others = [path for path in step_checkpoints(folder) if path != newest]
    for path in others[keep:]:
        path.unlink(missing_ok=True)
