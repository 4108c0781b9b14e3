"""Runs in one file: what ``peftlab bundle`` writes, and ``verify`` reads without unpacking by hand. Imports no torch.

A zip archive: each run's folder, ``<name>/<key>/…``, with the files that its record lists and no checkpoint; the table
of a sweep; ``packages.txt``, the versions of all packages of the environment that wrote it; and, last,
``bundle.json``, size and sha256 of every other member. Names are sorted and times left out: the same runs in the same
environment give the same bytes.

An archive may come from anywhere. It is unpacked into a folder of its own, after every name has been looked at: only
plain files of the list, none that leads out of that folder, none larger than the list says.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import IO, Any

from peftlab.audit.verify import verify
from peftlab.errors import PeftlabError, RunError, listed
from peftlab.files import open_regular, replacing
from peftlab.records.divergence import ENDED
from peftlab.records.find import run_folders, sources_of
from peftlab.records.folder import RunFolder
from peftlab.version import __version__

LIST = "bundle.json"
PACKAGES = "packages.txt"
FORMAT = 1
"""Version of the archive's form; readers refuse what they do not know."""
SWEEP = ("sweep.json", "table.md", "table.csv")
"""Files that a sweep has beside its runs."""
_MOST_LIST = 64 << 20
"""Bytes of the list: a hundred thousand runs have less."""
_DATE = (1980, 1, 1, 0, 0, 0)
"""Of each member: zip knows nothing earlier."""


class BadBundle(RunError):
    """An archive that is damaged, or is none of peftlab's."""


@dataclass(frozen=True)
class Written:
    """What a bundle holds."""

    path: Path
    runs: int
    files: int
    notes: list[str]
    """What is to be known of what is not in it."""


def write_bundle(given: Sequence[str], out: Path | None) -> Written:
    """Write the runs that ``given`` names or holds, and those that they start from or go on with.

    Args:
        given: run folders, or folders of runs.
        out: the archive; None: ``<name of the folder>.zip`` here.

    Raises:
        RunError: if a run is not as its record says, none has ended, or the archive is there already.
    """
    out = Path(f"{Path(given[0]).absolute().name}.zip") if out is None else out
    if out.exists():
        raise RunError(f"{out} is there already. Give another name with --out, or remove it.")
    found, notes = _ended(run_folders(given))
    members = dict[str, Path]()
    for folder in found:
        named = folder.path.absolute().parent
        members |= {f"{_place(folder)}/{name}": folder.path / name for name in _files_of(folder)}
        beside = {f"{named.name}/{name}": named / name for name in SWEEP if (named / name).is_file()}
        members |= beside if str(folder.path) not in given else {}
    files: dict[str, dict[str, Any]] = {}
    with replacing(out) as file, zipfile.ZipFile(file, "w") as archive:
        for name, source in sorted(members.items()):
            with os.fdopen(open_regular(source), "rb") as content:
                files[name] = _put(archive, name, content)
        files[PACKAGES] = _put_text(archive, PACKAGES, packages())
        listing = {"format": FORMAT, "peftlab": __version__, "runs": sorted(map(_place, found)), "files": files}
        _put_text(archive, LIST, json.dumps(listing, indent=1, sort_keys=True) + "\n")
    return Written(out, len(found), len(members), notes)


def _ended(folders: Sequence[RunFolder]) -> tuple[list[RunFolder], list[str]]:
    """Those that have ended and are as their records say, with the runs that they need; and what is left out."""
    found, notes, wrong = dict[str, RunFolder](), list[str](), list[str]()
    waiting, left = list(folders), 0
    asked = {_real(folder) for folder in folders}
    while waiting:
        folder = waiting.pop(0)
        if _place(folder) in found:
            if _real(found[_place(folder)]) != _real(folder):
                raise RunError(
                    f"{found[_place(folder)].path} and {folder.path} would have one name in the archive. Bundle them "
                    "by themselves."
                )
            continue
        verdict = verify(folder)
        if verdict.differences:
            wrong.append(f"{folder.path}: {verdict.differences[0]}")
            continue
        record = verdict.record
        if record is None or record["status"] not in ENDED:
            left += 1
            continue
        found[_place(folder)] = folder
        for key, source in sources_of(folder, record["config"]):
            if (source / "record.json").is_file():
                if _real(RunFolder(source)) not in asked:
                    notes.append(f"{source} is in it too: {folder.path} starts from it")
                waiting.append(RunFolder(source))
            else:
                notes.append(f"{folder.path} starts from a run that is not here and is not in it ({key})")
    if wrong:
        more = f"\n  … and {len(wrong) - 10} more" if len(wrong) > 10 else ""
        raise RunError("not as recorded, so nothing was written:\n  " + "\n  ".join(wrong[:10]) + more)
    if not found:
        raise RunError("none of these runs has ended: there is nothing to bundle.")
    if left:
        notes.append(f"{left} unfinished {'run is' if left == 1 else 'runs are'} not in it")
    return list(found.values()), list(dict.fromkeys(notes))


def _place(folder: RunFolder) -> str:
    path = folder.path.absolute()
    return f"{path.parent.name}/{path.name}"


def _real(folder: RunFolder) -> str:
    return os.path.realpath(folder.path)


def _files_of(folder: RunFolder) -> list[str]:
    record = folder.read_record() or {}
    pictures = [folder.curves.name] if folder.curves.is_file() else []
    of_diverged = [name for name in (folder.config.name, folder.metrics.name) if (folder.path / name).is_file()]
    return sorted({"record.json", *record.get("files", of_diverged), *pictures})


def packages() -> str:
    """The versions of all packages that are installed here, as pip writes them."""
    found = {str(one.metadata["Name"]).lower(): one.version for one in metadata.distributions() if one.metadata["Name"]}
    lines = [f"{name}=={version}" for name, version in sorted(found.items())]
    return "\n".join([f"# Python {platform.python_version()} on {platform.system()} {platform.machine()}", *lines, ""])


def _put(archive: zipfile.ZipFile, name: str, content: IO[bytes]) -> dict[str, Any]:
    info = zipfile.ZipInfo(name, _DATE)
    info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, (stat.S_IFREG | 0o644) << 16
    info.create_system = 3  # Unix, whose permissions these are
    whole, size = hashlib.sha256(), 0
    with archive.open(info, "w", force_zip64=True) as member:
        while part := content.read(1 << 20):
            member.write(part)
            whole.update(part)
            size += len(part)
    return {"bytes": size, "sha256": whole.hexdigest()}


def _put_text(archive: zipfile.ZipFile, name: str, text: str) -> dict[str, Any]:
    return _put(archive, name, io.BytesIO(text.encode()))


# -- reading -------------------------------------------------------------------------------------


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """A folder with what the bundle ``path`` holds, which is gone afterwards.

    Raises:
        BadBundle: if it is damaged, lacks a file, or holds anything that a bundle does not.
    """
    with tempfile.TemporaryDirectory(prefix="peftlab-bundle-") as scratch:
        try:
            with os.fdopen(open_regular(path), "rb") as file, zipfile.ZipFile(file) as archive:
                _unpack(archive, Path(scratch), path)
        except BadBundle:
            raise
        except PeftlabError as error:
            raise BadBundle(f"{path}: {error}") from error
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
            said = str(error) or type(error).__name__
            raise BadBundle(f"{path} is damaged, or no bundle: {said}. {_AGAIN}") from error
        except OSError as error:
            raise BadBundle(f"{path} cannot be read: {error.strerror or error}.") from error
        except Exception as error:  # zlib.error, struct.error: what is inside a member is damaged
            raise BadBundle(f"{path} is damaged: {str(error) or type(error).__name__}. {_AGAIN}") from error
        yield Path(scratch)


_AGAIN = "Copy it anew from where it is whole."


def _unpack(archive: zipfile.ZipFile, into: Path, path: Path) -> None:
    members = archive.infolist()
    for info in members:
        if problem := _problem(info):
            raise BadBundle(f"{path}: its member {info.filename!r} {problem}. Nothing was unpacked.")
    names = [info.filename for info in members]
    if doubled := sorted({name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else ()):
        raise BadBundle(f"{path} has {listed(doubled, limit=5)} twice. Nothing was unpacked.")
    files = _listed_files(archive, names, path)
    if lacking := sorted(set(files) - set(names)):
        raise BadBundle(f"{path} lacks {listed(lacking, limit=5)}, which its list names. {_AGAIN}")
    if more := sorted(set(names) - set(files) - {LIST}):
        raise BadBundle(f"{path} has {listed(more, limit=5)}, which its list does not name. Nothing was unpacked.")
    total = sum(int(facts["bytes"]) for facts in files.values())
    if total > (free := shutil.disk_usage(into).free):
        raise BadBundle(f"{path} holds {total:,} bytes, and {into.parent} has {free:,} free (TMPDIR names another).")
    for name, facts in files.items():
        _take_out(archive, name, facts, into, path)


def _problem(info: zipfile.ZipInfo) -> str:
    """What keeps a member from being unpacked; empty: nothing."""
    name, kind = info.filename, info.external_attr >> 16
    place = PurePosixPath(name)
    if info.orig_filename != name or "\\" in name or any(ord(sign) < 32 for sign in name):
        return "has a name that systems read differently"
    if place.is_absolute() or ":" in place.parts[0] if place.parts else True:
        return "has an absolute name"
    if ".." in place.parts or str(place) != name:
        return "has a name that leads out of its folder" if ".." in place.parts else "has no plain name"
    if stat.S_IFMT(kind) not in (0, stat.S_IFREG):
        return "is a link, or another thing that is no file"
    if info.flag_bits & 0x1:
        return "is encrypted"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "is compressed in a way that no bundle is"
    return ""


def _listed_files(archive: zipfile.ZipFile, names: Sequence[str], path: Path) -> dict[str, dict[str, Any]]:
    if LIST not in names:
        raise BadBundle(f"{path} is no bundle: it has no {LIST}. Give one that peftlab bundle has written.")
    with archive.open(LIST) as file:
        text = file.read(_MOST_LIST + 1)
    try:
        listing: Any = json.loads(text) if len(text) <= _MOST_LIST else None
        if listing["format"] != FORMAT:
            raise BadBundle(f"{path} has the form {listing['format']!r}, and this peftlab reads {FORMAT}.")
        files: dict[str, dict[str, Any]] = listing["files"]
        for facts in files.values():
            if type(facts["bytes"]) is not int or facts["bytes"] < 0 or len(facts["sha256"]) != 64:
                raise TypeError
    except BadBundle:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BadBundle(f"{path}: its {LIST} is not as peftlab writes it.") from error
    return files


def _take_out(archive: zipfile.ZipFile, name: str, facts: dict[str, Any], into: Path, path: Path) -> None:
    target = into.joinpath(*PurePosixPath(name).parts)
    target.parent.mkdir(parents=True, exist_ok=True)
    whole, size = hashlib.sha256(), 0
    with archive.open(name) as member, target.open("xb") as file:
        while size <= facts["bytes"] and (part := member.read(1 << 20)):
            whole.update(part)
            size += len(part)
            file.write(part)
    if size != facts["bytes"] or whole.hexdigest() != facts["sha256"]:
        raise BadBundle(f"{path}: {name} has other content than its list says. {_AGAIN}")
