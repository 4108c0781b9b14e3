"""Taking runs away: those that nobody is at, no other run starts from and no sweep counts on. Imports no torch."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from peftlab.errors import PeftlabError, RunError
from peftlab.records.find import run_folders, value_of
from peftlab.records.folder import RunFolder, read_config_values
from peftlab.report.groups_sweep import read_sweep_file
from peftlab.report.records_find import LeftOut

_REMOVING = ".removing-"


def why_kept(folders: Sequence[RunFolder]) -> dict[RunFolder, str]:
    """Those of ``folders`` that must stay → why, with what to do instead."""
    going = {_real(folder.path) for folder in folders}
    kept: dict[RunFolder, str] = {}
    sources: dict[Path, dict[str, str]] = {}
    of_sweeps: dict[Path, set[str]] = {}
    for folder in folders:
        named, output_dir = folder.path.absolute().parent, folder.path.absolute().parent.parent
        if output_dir not in sources:
            sources[output_dir] = _sources(output_dir, going)
        if named not in of_sweeps:
            of_sweeps[named] = set(_keys_of_sweep(named))
        if (holder := folder.held_by()) is not None:
            kept[folder] = f"is in use by process {holder}. Wait for it, or stop it."
        elif (user := sources[output_dir].get(_real(folder.path))) is not None:
            kept[folder] = f"is what the run in {user} starts from. Remove that one first, or with it."
        elif folder.key in of_sweeps[named]:
            kept[folder] = (
                f"belongs to the sweep in {named}, which would run it again. Take its cell or seed out of the sweep's "
                "file and run the sweep once more, or remove the sweep's whole folder yourself."
            )
    return kept


def remove(folder: RunFolder) -> int:
    """Take a run away, with the log that a sweep has left of it.

    Returns:
        bytes that are free now.

    Raises:
        RunInUse: if a process holds it.
        RunError: if it cannot be removed; what is left of it is named.
    """
    log = folder.path.parent / ".logs" / f"{folder.key}.txt"
    size = size_of(folder)
    with folder.locked():
        try:
            if folder.path.is_symlink():
                folder.path.unlink()
            else:  # first out of sight in one step, so that nobody reads half of a run
                aside = folder.path.with_name(f"{_REMOVING}{folder.path.name}")
                folder.path.rename(aside)
                shutil.rmtree(aside)
        except OSError as error:
            raise RunError(
                f"cannot remove {folder.path}: {error.filename}: {error.strerror}. Remove what is left of it by hand."
            ) from error
    with contextlib.suppress(OSError):
        log.unlink()
    for empty in (log.parent, folder.path.parent):
        with contextlib.suppress(OSError):
            empty.rmdir()
    return size


def size_of(folder: RunFolder) -> int:
    """Bytes of the files in the folder; what links point to is not counted."""
    if folder.path.is_symlink():
        return 0
    found = 0
    for place, _, files in os.walk(folder.path):
        for name in files:
            with contextlib.suppress(OSError):
                found += os.lstat(Path(place) / name).st_size
    return found


def _sources(output_dir: Path, going: Iterable[str]) -> dict[str, str]:
    """Run folder → one below ``output_dir``, and not among those that are ``going``, that starts from it."""
    gone, found = set(going), dict[str, str]()
    with contextlib.suppress(RunError):
        for folder in run_folders([str(output_dir)]):
            if _real(folder.path) not in gone:
                for path in _starts(folder):
                    found.setdefault(_real(path), str(folder.path))
    return found


def _starts(folder: RunFolder) -> Iterator[Path]:
    """The runs that ``folder`` names: by their path, or where they lie beside it if that leads nowhere."""
    try:
        record = folder.read_record(checked=False)
        config: Mapping[str, Any] = read_config_values(folder) if record is None else record["config"]
        names = ((record or {}).get("identity") or {}).get("run_folders") or ["backbone.from_run"]
    except (PeftlabError, KeyError, TypeError):
        return
    for name in names:
        path = value_of(config, str(name))
        if isinstance(path, str):
            beside = folder.path.absolute().parent / Path(path).name
            yield Path(path).expanduser() if Path(path).expanduser().is_dir() else beside


def _keys_of_sweep(named: Path) -> Iterator[str]:
    """Keys of the runs that a sweep.json in the folder ``named`` names, those that a search has tried too."""
    path = named / "sweep.json"
    if not path.exists():
        return
    sweep = read_sweep_file(str(path))
    if isinstance(sweep, LeftOut):
        raise RunError(
            f"{path} {sweep.reason}: whether a run belongs to that sweep cannot be told. Run the sweep once more, "
            "which writes the file, or remove its whole folder yourself."
        )
    for arm in sweep.arms:
        yield from (*arm.runs.values(), *arm.tried)


def _real(path: Path) -> str:
    return os.path.realpath(path)
