"""Can each job of a sweep be built? Tried on the shapes of its model, before the first one starts. Imports no torch.

A method that finds none of its targets, a rank above what a layer has, a text longer than the model has positions for:
all of it is known without weights and data, and six jobs shall not fail one after the other with the same line. The
models are built on ``meta`` in a fork of the server that the jobs are forked from anyway.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from typing import Any

from peftlab.config import RunConfig, from_plain
from peftlab.errors import PeftlabError
from peftlab.records.continuing import parent_of
from peftlab.sweeps import processes
from peftlab.sweeps.counting import shape
from peftlab.sweeps.faults import Faults
from peftlab.sweeps.readable import note_unreadable, waiting


class Soundness:
    """Remembers what has been found sound, for a sweep that is looked at in several parts."""

    def __init__(self) -> None:
        self._sound: set[str] = set()

    def require(self, named: Sequence[tuple[str, RunConfig]], what: str) -> list[str]:
        """Refuse jobs whose data cannot be read, or that cannot be built; those that have begun or ended, which could,
        are not looked at.

        Args:
            named: name and config of each job.
            what: what they are, ``job`` or ``cell``.

        Returns:
            what :func:`~peftlab.sweeps.readable.require_readable` returns.

        Raises:
            PeftlabError: naming every fault, and who has it.
        """
        open_jobs: dict[str, list[tuple[str, RunConfig]]] = {}
        faults, new = Faults(what, len(named)), waiting(named)
        lines = note_unreadable(faults, new)
        for name, config in new:
            with faults.noting(name):
                parent_of(config)
            if (form := _form(config)) not in self._sound:
                open_jobs.setdefault(form, []).append((name, config))
        configs = [alike[0][1].plain() for alike in open_jobs.values()]
        found = processes.asked(_faults_of, configs) if configs else []
        for (form, alike), fault in zip(open_jobs.items(), found, strict=True):
            if fault is None:
                self._sound.add(form)
                continue
            for name, _ in alike:
                faults.note(name, *fault)
        faults.require_none()
        return lines


def _form(config: RunConfig) -> str:
    """Equal for configs of which one can be built if the other can."""
    generation = config.data.generation()
    return json.dumps([shape(config), config.data.max_length, generation and generation.max_new_tokens])


def _faults_of(plain: Sequence[dict[str, Any]]) -> list[tuple[str, type[PeftlabError]] | None]:
    return [fault_of(values) for values in plain]


def fault_of(values: dict[str, Any]) -> tuple[str, type[PeftlabError]] | None:
    """What keeps a config from being built, and the kind of error; None: nothing that is seen without its weights."""
    from peftlab.peft.base import attach
    from peftlab.runs.assemble import require_positions
    from peftlab.training.frozen_blocks import require_frozen_blocks

    values = {**values, "backbone": {**values["backbone"], "from_run": None}, "measure_forgetting": False}
    with contextlib.suppress(Exception):  # what needs values, of another package: the job itself will say it
        try:
            config = from_plain(values)
            own: dict[str, Any] = {"head": "own"} if config.data.what_is_learned().head == "own" else {}
            backbone = config.backbone.build(2, seed=0, device="meta", **own)  # the classes count in the head alone
            require_positions(config, backbone)
            adapter = attach(backbone, config.peft, seed=0, train_head=config.trains_head)
            if getattr(config.backbone, "cache_frozen", False):
                require_frozen_blocks(adapter)
        except PeftlabError as error:
            return str(error), type(error)
    return None
