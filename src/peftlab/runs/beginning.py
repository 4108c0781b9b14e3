"""Where a run begins: at the start, at a checkpoint of its own, or where the run has ended that it goes on with."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftlab.config import RunConfig
from peftlab.errors import counted
from peftlab.files import open_regular, replacing
from peftlab.records.continuing import Parent
from peftlab.records.folder import RunFolder
from peftlab.terminal import say
from peftlab.training.checkpoint import WAY_OUT, DamagedCheckpoint, read_checkpoint, require_best
from peftlab.training.places import Place
from peftlab.training.ranks import world_size
from peftlab.training.resuming import newest_whole
from peftlab.training.selection import monitored


@dataclass(frozen=True)
class Begin:
    """The checkpoint to go on from."""

    checkpoint: str = ""
    """Its name in the run's folder; empty: from the start."""
    own: bool = True
    """Whether the run has written it itself: it was begun before."""

    @property
    def resumed(self) -> bool:
        """Whether the run goes on with what an earlier attempt of its own has done."""
        return bool(self.checkpoint) and self.own


def begins_at(config: RunConfig, folder: RunFolder, parent: Parent | None) -> Begin:
    """The newest checkpoint of the run that is whole; without one, the state in which ``parent`` has ended.

    That state is copied into the run's own folder, so that whatever happens then happens as in any other run.

    Raises:
        RunError: if the state of ``parent`` is damaged, or not that of its record.
    """
    best = config.trainer.select == "best"
    monitor = monitored(config.trainer, config.data.what_is_learned()) if best else None
    checkpoint, said = newest_whole(folder.checkpoints, monitor, world_size(config.trainer))
    for line in said:
        print(line, flush=True)
    if checkpoint is not None:
        return Begin(checkpoint.name, own=parent is None or not _ends(read_checkpoint(checkpoint), parent))
    if parent is None:
        return Begin()
    _require_whole(parent, config)
    for source in (parent.best, parent.last) if best else (parent.last,):  # the one that is looked for comes last
        _copy(source, folder.checkpoints / source.name)
    return Begin(parent.last.name, own=False)


def _copy(source: Path, target: Path) -> None:
    with os.fdopen(open_regular(source), "rb") as file, replacing(target) as copy:
        while part := file.read(1 << 20):
            copy.write(part)


def _require_whole(parent: Parent, config: RunConfig) -> None:
    try:
        last = read_checkpoint(parent.last)
        if config.trainer.select == "best":
            figure = monitored(config.trainer, config.data.what_is_learned())
            require_best(read_checkpoint(parent.best), parent.best, last["history"], figure, ended=True)
    except DamagedCheckpoint as error:
        raise parent.refused(str(error).removesuffix(WAY_OUT).rstrip()) from error
    if not _ends(last, parent):
        raise parent.refused(f"{parent.last} is not the state in which that run ended, by its record.")


def _ends(checkpoint: dict[str, Any], parent: Parent) -> bool:
    """Whether ``checkpoint`` is of the end of ``parent``: the same epochs, to the last digit of the time they took."""
    if "place" in checkpoint:
        return False
    kept = ("epoch", "step", "train_seconds")
    theirs = [[row[name] for name in kept] for row in parent.record["history"]]
    return [[row[name] for name in kept] for row in checkpoint["history"]] == theirs


def print_where(config: RunConfig, begin: Begin, path: Path, place: Place) -> None:
    """Say where training goes on."""
    if begin.own:
        say(f"resuming from {path}")
        return
    say(
        f"going on with {config.continue_from},\n"
        f"after its {counted(place.epoch, 'epoch')}, by the schedule of {counted(config.trainer.max_epochs, 'epoch')}",
    )
