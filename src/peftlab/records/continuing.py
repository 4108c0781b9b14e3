"""More epochs for a run that has ended (``continue_from``): what may change, and what of it must be there.

The new run is a run of its own, under a key that names the earlier one, and goes on from the state in which that one
ended: weights, optimizer, step. Its schedule is that of its own length, at the step where the earlier one ended: a
linear decay over 10 epochs that goes on after 2 of 2 goes on at 8 tenths of the peak, though the earlier one had come
down to none. With a constant rate two and two epochs are four, to the bit. Imports no torch.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from peftlab.config import RunConfig
from peftlab.errors import ConfigError, PeftlabError, RunError, counted
from peftlab.records import identity_tags
from peftlab.records.folder import RunFolder, finished_run
from peftlab.records.identity import CONTINUES, recorded, run_tags, semantic_of
from peftlab.records.identity_recorded import recorded_identity
from peftlab.training.places import ends_epoch
from peftlab.training.selection import monitored, training_is_over

FIELD = "continued_from"
"""Where a record says what it goes on from."""
FREE = ("trainer.max_epochs", "trainer.max_steps", "trainer.early_stopping_patience", "measure_forgetting", "probe")
"""What may be other than in the earlier run, beside bookkeeping: how long, and what is measured behind training."""


@dataclass(frozen=True)
class Parent:
    """The run that another goes on from."""

    given: str
    """Its folder, as typed."""
    folder: RunFolder
    record: dict[str, Any]

    @property
    def last(self) -> Path:
        """The state in which it ended."""
        return self.folder.checkpoints / "last.ckpt"

    @property
    def best(self) -> Path:
        """Its best weights, which may stay the best."""
        return self.folder.checkpoints / "best.ckpt"

    @property
    def epochs(self) -> int:
        """That it has done, those before its own start too."""
        return int(self.record["history"][-1]["epoch"]) + 1

    def facts(self) -> dict[str, Any]:
        """What a record says of it."""
        earlier = (self.record.get(FIELD) or {}).get("ends", [])
        return {
            "path": self.given,
            "run": self.record["key"],
            "checksum": self.record.get("checksum"),
            "epochs": self.epochs,
            "step": self.record["history"][-1]["step"],
            "ends": [*earlier, self.epochs],
        }

    def refused(self, why: str) -> RunError:
        """The error that says why nothing goes on from it, and how it is made again."""
        argv = self.record.get("argv") or []
        typed = argv[:2] == ["peftlab", "train"]
        again = shlex.join([*argv, "trainer.keep_checkpoints=true", "force=true"]) if typed else ""
        way = f"Make it again with its last state: {again}" if again else "Make it again with its last state."
        return RunError(f"continue_from={self.given}: {why} {way}")


def parent_of(config: RunConfig, begun: RunFolder | None = None) -> Parent | None:
    """The run that ``config`` goes on from, if it can; None: from none.

    Args:
        config: of the run that is to go on.
        begun: its folder, where there may be checkpoints of its own; it then needs none of the earlier run any more.

    Raises:
        ConfigError: naming the keys that are other than in it, or that leave nothing to train.
        RunError: if it is no finished run, or has not kept the state in which it ended.
    """
    if config.continue_from is None:
        return None
    given = config.continue_from
    try:
        folder, earlier, record = finished_run(str(Path(given).expanduser()))
    except RunError as error:
        raise RunError(f"continue_from={given}: {error}") from error
    parent = Parent(given, folder, record)
    _require_same(config, parent)
    _require_more(config, parent)
    _require_whole_epochs(earlier, parent)
    if begun is not None and begun.checkpoints.exists():
        return parent
    for path in (parent.last, *([parent.best] if config.trainer.select == "best" else [])):
        if not path.is_file():
            raise parent.refused(
                f"the run has not kept the state in which it ended ({path} is not there), without which more epochs "
                "would not be those of one long run. A run keeps it with trainer.keep_checkpoints=true."
            )
    return parent


def _require_same(config: RunConfig, parent: Parent) -> None:
    mine, theirs = _decides(config.plain(), recorded(config), run_tags(config)), _of_record(config, parent.record)
    tags, before = mine.pop("tags", None), theirs.pop("tags", None)
    if differing := list(_differing(mine, theirs)):
        raise ConfigError(
            f"continue_from={parent.given} goes on with the training of that run, which had {', '.join(differing)}. "
            f"Leave these as they were; what may change is {', '.join(FREE)}, and what decides no number."
        )
    if tags != before:
        raise RunError(
            f"continue_from={parent.given}: peftlab computes such a run otherwise since then "
            f"({', '.join(sorted({*(tags or []), *(before or [])}))}), so the two would not be one run. Train it anew."
        )


def _of_record(config: RunConfig, record: Mapping[str, Any]) -> dict[str, Any]:
    said = recorded_identity(record, config.data)
    said.setdefault("content", recorded(config)["content"])  # of an earlier version, which did not say it
    return _decides(record["config"], said, identity_tags.recorded_tags(record))


def _decides(config: Mapping[str, Any], said: Mapping[str, Any], tags: Sequence[str]) -> dict[str, Any]:
    """Dotted key → value of all that decides the training but what may change, and what is gone on from."""
    found: dict[str, Any] = {}
    for name, value in semantic_of(config, said, tags).items():
        if name == CONTINUES:
            continue
        found |= {f"{name}.{key}": inner for key, inner in value.items()} if isinstance(value, dict) else {name: value}
    return {key: value for key, value in found.items() if key not in FREE}


_NONE = object()


def _differing(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[str]:
    """The keys that differ with their values in the earlier run, as people type them."""
    for key in dict.fromkeys([*theirs, *mine]):
        before, now = theirs.get(key, _NONE), mine.get(key, _NONE)
        if before == now:
            continue
        group, _, name = key.partition(".")
        if "_content" in group or group in ("from_run",):
            yield f"other content of the files of {group.removesuffix('_content')}{f' ({name})' if name else ''}"
        elif name == "class":
            yield f"another {group} ({str(before).rpartition('.')[2]})"
        elif before is _NONE:
            yield f"no {key} beyond its default (here: {now})"
        else:
            yield f"{key}={_typed(before)} (here: {'its default' if now is _NONE else _typed(now)})"


def _typed(value: Any) -> str:
    return {None: "null", True: "true", False: "false"}.get(value, str(value)) if _plain(value) else str(value)


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _require_more(config: RunConfig, parent: Parent) -> None:
    """Refuse a run that would end where it begins, or a method whose own schedule has ended."""
    history, trainer = parent.record["history"], config.trainer
    done = f"that run has done {counted(parent.epochs, 'epoch')} ({history[-1]['step']} steps)"
    if trainer.max_epochs <= parent.epochs:
        raise ConfigError(
            f"trainer.max_epochs={trainer.max_epochs} leaves nothing to do: {done}, and they count. Give more."
        )
    if training_is_over(history, trainer, monitored(trainer, config.data.what_is_learned())):
        raise ConfigError(
            f"trainer.max_steps={trainer.max_steps or 'null'} trainer.early_stopping_patience="
            f"{trainer.early_stopping_patience or 'null'}: by these training is over where {done}. Raise them, or set "
            "them to null."
        )
    if config.peft.acts_between_steps():
        raise PeftlabError(
            f"continue_from: peft={config.peft.name} has a schedule of its own over all steps of a run, and that run "
            "has gone through it to its end. Train it anew with more epochs."
        )


def _require_whole_epochs(earlier: RunConfig, parent: Parent) -> None:
    """Refuse a run that ended inside an epoch: the rest of it would be left out."""
    ends = [0, *(row["step"] for row in parent.record["history"] if ends_epoch(row))]
    steps = [after - before for before, after in pairwise(ends)]
    cut = earlier.trainer.max_steps is not None and ends[-1] >= earlier.trainer.max_steps
    cut |= earlier.trainer.early_stopping_patience is not None and earlier.trainer.validate_every_n_steps is not None
    whole = steps[-1] == steps[0] if len(steps) > 1 else not cut
    if not whole:
        raise RunError(
            f"continue_from={parent.given}: that run ended inside epoch {parent.epochs} (trainer.max_steps, or early "
            "stopping between validations), and the rest of that epoch would be left out. Only a run that ended with "
            "an epoch can be gone on with."
        )
