"""Which checkpoint a run goes on from: the newest that is whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from peftlab.objectives.base import Figure
from peftlab.training.checkpoint import WAY_OUT, DamagedCheckpoint, read_checkpoint, require_best
from peftlab.training.places import Place, place_in_name, place_of, step_checkpoints


def newest_whole(folder: Path, monitor: Figure | None, processes: int = 1) -> tuple[Path | None, list[str]]:
    """The checkpoint to go on from, and what is to be said of others that cannot be; those are moved to ``damaged``.

    Without one that is whole, the run begins anew: from the beginning, it ends with the same bits.

    Args:
        folder: the run's ``checkpoints``.
        monitor: the figure that chooses ``best.ckpt``; None: the last epoch is chosen.
        processes: that the run has.
    """
    for begun in folder.glob(".*.ckpt.*"):  # by a process that was killed meanwhile
        begun.unlink()
    last, wrong = folder / "last.ckpt", dict[Path, str]()
    best = cache(lambda: read_checkpoint(folder / "best.ckpt"))  # once, however many need it

    def whole(path: Path) -> Place | None:
        try:
            return _require_all(path, monitor, best, processes)
        except DamagedCheckpoint as error:
            wrong[path] = str(error)
            return None

    epoch = whole(last) if last.exists() else None
    inside = [path for path in step_checkpoints(folder) if epoch is None or place_in_name(path) > epoch]
    chosen = next((path for path in inside if whole(path)), None if epoch is None else last)
    return chosen, _put_aside(folder, wrong, chosen) if wrong else []


def _put_aside(folder: Path, wrong: dict[Path, str], chosen: Path | None) -> list[str]:
    """Move what cannot be used out of the way, all of it if nothing can; what is to be said."""
    kept = folder.parent / "damaged"
    shutil.rmtree(kept, ignore_errors=True)
    said = list(dict.fromkeys(wrong.values()))
    if chosen is None:
        folder.rename(kept)
        said[-1] += f" The latter is done now; the checkpoints that were there are in {kept}."
        return said
    kept.mkdir()
    for path in wrong:
        path.rename(kept / path.name)
    said = [one.removesuffix(WAY_OUT).rstrip() for one in said]
    said[-1] += f" {chosen.name} is whole, and the run goes on from it; what cannot be used is in {kept}."
    return said


def _require_all(path: Path, monitor: Figure | None, best: Callable[[], dict[str, Any]], processes: int) -> Place:
    """Read ``path``, and the best one that it needs.

    Raises:
        DamagedCheckpoint: naming the one that is not whole.
    """
    checkpoint = read_checkpoint(path)
    if (inside := checkpoint.get("place")) is not None and (theirs := len(inside["ranks"])) != processes:
        raise DamagedCheckpoint(
            f"{path} is of a run on {theirs} process{'es' if theirs > 1 else ''}, and this one has {processes}. "
            f"{WAY_OUT}"
        )
    if monitor is not None and (history := checkpoint["history"]):
        require_best(best(), path.parent / "best.ckpt", history, monitor, ended=False)
    return place_of(checkpoint)
