"""The code, the configs and the sweep's file as they are when a sweep is submitted: what all its workers run. No torch.

    <place>/snapshots/<hash>/code/peftlab, code/hydra_plugins     first on the workers' path
                             code/peftlab_snapshot.json           makes a run say which snapshot it ran from
                             sweep.yaml, config_dir               what the command names

An editor at work between two turns of a worker changes nothing; packages of others, data and weights are as they are.
Submitting removes those that no record names and no worker needs.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path

from peftlab.errors import PeftlabError
from peftlab.reading import read_json
from peftlab.records.environment import SNAPSHOT, git_state
from peftlab.shipped import config_folder

PACKAGE = Path(__file__).parents[1]
"""The sources that run now."""
_IGNORED = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")


def take(place: Path, files: Mapping[str, Path]) -> Path:
    """Copy what decides a run but for data; the folder of the copy, which may be there already.

    Args:
        place: where snapshots lie.
        files: name in the snapshot → a file or folder that goes into it.

    Raises:
        PeftlabError: if it cannot be written.
    """
    place.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=place, prefix=".making-"))
    try:
        _copy(made, files)
        name = _hash(made)
        about = {"hash": name, "git": git_state()}
        (made / "code" / SNAPSHOT).write_text(json.dumps(about) + "\n", encoding="utf-8")
        made.chmod(0o755)
        if not (place / name).is_dir():
            made.rename(place / name)
    except OSError as error:
        raise PeftlabError(f"cannot write a copy of the code below {place}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return place / name


def prune(place: Path, needed: Collection[str], folder: Path) -> list[str]:
    """Remove copies that nothing needs any more; their names. Whoever calls it holds the ledger: nobody takes one.

    Args:
        place: where snapshots lie.
        needed: those that workers run, or will run.
        folder: of the runs, ``<output_dir>/<name>`` or ``<output_dir>``; what one of their records names, stays.
    """
    found = {path.name: path for path in place.iterdir()} if place.is_dir() else {}
    unused = found.keys() - set(needed)
    if unused:
        named = _named_by_records(folder)
        unused = set() if named is None else unused - named
    for name in unused:  # renamed first: half of one is never taken for a whole
        gone = place / f".making-{name}"
        found[name].rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
    return sorted(name for name in unused if not name.startswith("."))


def _named_by_records(folder: Path) -> set[str] | None:
    """Snapshots that records name; None if one of them cannot be read."""
    named = set()
    for path in (*folder.glob("*/record.json"), *folder.glob("*/*/record.json")):
        try:
            named.add(str(read_json(path).get("snapshot", "")))
        except (OSError, ValueError, AttributeError):
            return None
    return named


def _copy(made: Path, files: Mapping[str, Path]) -> None:
    code = made / "code"
    shutil.copytree(PACKAGE, code / "peftlab", ignore=_IGNORED)
    shutil.copytree(config_folder(), code / "peftlab" / "conf", ignore=_IGNORED, dirs_exist_ok=True)
    shutil.copytree(PACKAGE.parent / "hydra_plugins", code / "hydra_plugins", ignore=_IGNORED)
    for name, path in files.items():
        if path.is_dir():
            shutil.copytree(path, made / name, ignore=_IGNORED)
        else:
            shutil.copyfile(path, made / name)


def _hash(folder: Path) -> str:
    """Of all files below ``folder``, by name and content."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder)}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:12]
