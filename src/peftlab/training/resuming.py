"""Which checkpoint a run goes on from: the newest that is whole."""

from __future__ import annotations

import shutil
from pathlib import Path

from peftlab.objectives.base import Figure
from peftlab.training.checkpoint import WAY_OUT, DamagedCheckpoint, read_checkpoint, require_best
from peftlab.training.places import Place, place_of, step_checkpoints


def newest_whole(folder: Path, monitor: Figure | None) -> tuple[Path | None, list[str]]:
    """The checkpoint to go on from, and what is to be said of others that cannot be; those are moved to ``damaged``.

    Without one that is whole, the run begins anew: from the beginning, it ends with the same bits.

    Args:
        folder: the run's ``checkpoints``.
        monitor: the figure that chooses ``best.ckpt``; None: the last epoch is chosen.
    """
    last, wrong = folder / "last.ckpt", dict[Path, str]()
    whole: list[tuple[Place, Path]] = []
    for path in [*step_checkpoints(folder), *([last] if last.exists() else [])]:
        try:
            whole.append((_require_all(path, monitor), path))
        except DamagedCheckpoint as error:
            wrong[path] = str(error)
    if not wrong:
        return (max(whole)[1] if whole else None), []
    kept = folder.parent / "damaged"
    shutil.rmtree(kept, ignore_errors=True)
    said = list(dict.fromkeys(wrong.values()))
    if not whole:
        folder.rename(kept)
        said[-1] += f" The latter is done now; the checkpoints that were there are in {kept}."
        return None, said
    kept.mkdir()
    for path in wrong:
        path.rename(kept / path.name)
    chosen = max(whole)[1]
    said = [one.removesuffix(WAY_OUT).rstrip() for one in said]
    said[-1] += f" {chosen.name} is whole, and the run goes on from it; what cannot be used is in {kept}."
    return chosen, said


def _require_all(path: Path, monitor: Figure | None) -> Place:
    """Read ``path``, and the best one that it needs."""
    checkpoint = read_checkpoint(path)
    if monitor is not None and (history := checkpoint["history"]):
        best = path.parent / "best.ckpt"
        require_best(read_checkpoint(best), best, history, monitor, ended=False)
    return place_of(checkpoint)
