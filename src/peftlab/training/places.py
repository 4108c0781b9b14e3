"""Where training was when a row of its history was added, or a checkpoint written. Imports no torch.

A history has a row for each validation. One at an epoch's end is there always; one inside an epoch
(``trainer.validate_every_n_steps``) says which share of the epoch was done. ``epoch`` counts from 0 and is the one that
the row lies in, ``step`` the optimizer steps that are done; figures on train are those since the row before.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
OF_EPOCH = "of_epoch"
"""Of a row inside an epoch: the share of the epoch's batches that are done, above 0 and below 1."""
_INSIDE = re.compile(r"epoch-(\d+)-batch-(\d+)\.ckpt")


def ends_epoch(row: Row) -> bool:
    """Whether ``row``, of a history or of metrics.csv, is that of an epoch's end."""
    return row.get(OF_EPOCH) in (None, "")


def epochs_done(row: Row) -> float:
    """Epochs that are done at ``row``; an integer at an epoch's end, also of one that was cut short."""
    return int(row["epoch"]) + (1 if ends_epoch(row) else float(row[OF_EPOCH]))


def place_in_words(row: Row, epochs: int | None = None) -> str:
    """``epoch 2``, with ``epochs`` ``epoch 2/3``; inside an epoch ``step 300 (epoch 2)``."""
    epoch = f"epoch {row['epoch'] + 1}" + (f"/{epochs}" if epochs else "")
    return epoch if ends_epoch(row) else f"step {row['step']} ({epoch})"


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
