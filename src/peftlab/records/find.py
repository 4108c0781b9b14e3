"""The run folders that a path on the command line stands for. Imports no torch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftlab.errors import PeftlabError, RunError
from peftlab.records.divergence import ENDED
from peftlab.records.folder import RunFolder, read_config_values

if TYPE_CHECKING:
    from peftlab.config import RunConfig
    from peftlab.training.config import TrainerConfig

_MARKS = {"record.json", "adapter.safetensors", "metrics.csv", "checkpoints"}
"""What only a run leaves; config.yaml alone may be anybody's."""


def run_folders(given: Sequence[str]) -> list[RunFolder]:
    """Every run folder that ``given`` names or holds, finished or not, each once, in the order given.

    Args:
        given: run folders, folders of runs, or paths of a record.json, as typed.

    Raises:
        RunError: naming a path that is not there, is another file, or holds no run.
    """
    found: dict[str, RunFolder] = {}
    for name in given:
        path = Path(name).expanduser()
        if path.is_file():
            if path.name != "record.json":
                raise RunError(f"'{name}' is a file. Give a run folder, a folder of runs, or the record.json of a run.")
            path = path.parent
        elif not path.is_dir():
            raise RunError(
                f"there is no folder '{name}'. Give a run folder (outputs/<name>/<key>) or a folder of them."
            )
        runs = list(_walk(os.fspath(path)))
        if not runs:
            raise RunError(
                f"'{name}' holds no run: there is no record.json in it or below it. Runs are in <output_dir>/<name>."
            )
        whole = os.path.abspath(path)  # noqa: PTH100  keeps links, takes '..' out
        for run in runs:
            found.setdefault(whole + run.removeprefix(os.fspath(path)), RunFolder(Path(run)))
    return list(found.values())


def known_folder(config: RunConfig) -> RunFolder:
    """The folder of the run ``config``: its own, or where the same run is finished already under another name.

    A name is no part of what a run is. One that is unfinished elsewhere stays there: whoever began it may be at it.
    With ``force=true`` the run is made under its own name.
    """
    own = RunFolder.of(config)
    if config.force or own.record.exists() or own.checkpoints.exists():
        return own
    for path in sorted(Path(config.output_dir).glob(f"*/{own.key}/record.json")):
        folder = RunFolder(path.parent)
        with contextlib.suppress(RunError):  # damaged: as if it were not there
            record = folder.read_record()
            if record is not None and record["status"] in ENDED and record.get("key") == own.key:
                return folder
    return own


def begun_on_other_devices(config: RunConfig) -> Iterator[tuple[RunFolder, TrainerConfig]]:
    """Unfinished runs of the same name that are ``config`` on other processes, and their trainers."""
    from peftlab.config import from_plain  # who looks for folders only needs no config
    from peftlab.records.identity import run_key

    own, plain = RunFolder.of(config), config.plain()
    devices = ("devices", "num_nodes", "strategy")
    mine = {name: getattr(config.trainer, name) for name in devices}
    for path in sorted(own.path.parent.glob("*/checkpoints")):
        folder = RunFolder(path.parent)
        with contextlib.suppress(PeftlabError):  # damaged, or of a later peftlab: nothing can be said of it
            values = read_config_values(folder)
            if folder.path.name == own.key or any(values.get(name) != plain[name] for name in ("seed", "peft")):
                continue
            record, other = folder.read_record(), from_plain(values)
            if (record is None or record["status"] not in ENDED) and run_key(
                replace(other, trainer=replace(other.trainer, **mine))
            ) == own.key:
                yield folder, other.trainer


def _walk(folder: str) -> Iterator[str]:
    """Run folders at or below ``folder``; what lies inside a run (logs, checkpoints) is not looked at."""
    if os.path.lexists(f"{folder}/record.json"):
        yield folder
        return
    try:
        with os.scandir(folder) as found:
            entries = list(found)
    except OSError:  # as os.walk does: what cannot be looked into has no runs for us
        return
    names = {entry.name for entry in entries}
    if "config.yaml" in names and names & _MARKS:
        yield folder
        return
    for entry in sorted(entries, key=lambda entry: entry.name):
        if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
            yield from _walk(f"{folder}/{entry.name}")


def value_of(config: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key of one or two parts in a plain config; None if it is not there."""
    group, dot, name = key.partition(".")
    part = config.get(group)
    return (part.get(name) if isinstance(part, Mapping) else None) if dot else part


def set_value(config: dict[str, Any], key: str, value: Any) -> None:
    """Set what :func:`value_of` returns."""
    group, dot, name = key.partition(".")
    if dot:
        config[group][name] = value
    else:
        config[group] = value


def moved_runs(config: Mapping[str, Any], run_folders: Sequence[str], folder: RunFolder) -> dict[str, str]:
    """Dotted key → where an earlier run is now: beside ``folder``, if its old path leads nowhere.

    Runs of a sweep, or of one ``output_dir``, that were copied together to another place find each other in this way.
    The path is not part of a run's identity: the earlier run's key and the content of its adapter are.
    """
    found = {}
    for key in run_folders:
        path = value_of(config, key)
        if path is None or Path(path).expanduser().is_dir():
            continue
        if (beside := _beside(folder, path)) is not None:
            found[key] = str(beside)
    return found


def _beside(folder: RunFolder, path: str) -> Path | None:
    """Where the run that was at ``path`` lies beside ``folder``: under the same name, or under its own."""
    named = folder.path.absolute().parent
    parts = Path(path).parts[-2:]
    return next((place for place in (named / parts[-1], named.parent.joinpath(*parts)) if place.is_dir()), None)


def sources_of(folder: RunFolder, config: Mapping[str, Any]) -> Iterator[tuple[str, Path]]:
    """Key and folder of each run that a recorded run starts from or goes on with; the folder may not be there."""
    for key in ("backbone.from_run", "peft.source", "continue_from"):
        if isinstance(path := value_of(config, key), str):
            there = Path(path).expanduser()
            yield key, there if there.is_dir() else _beside(folder, path) or there


def look_beside(config: RunConfig, folder: RunFolder) -> RunConfig:
    """``config`` with earlier runs where they are now; see :func:`moved_runs`."""
    keys = [field.name for field in fields(config) if field.metadata.get("run_folder")] + [
        f"{group.name}.{field.name}"
        for group in fields(config)
        if is_dataclass(part := getattr(config, group.name))
        for field in fields(part)
        if field.metadata.get("run_folder")
    ]
    for key, path in moved_runs(config.plain(), keys, folder).items():
        name, dot, inner = key.partition(".")
        changed: Any = replace(getattr(config, name), **{inner: path}) if dot else path
        config = replace(config, **{name: changed})
    return config
