"""What jobs compose to, remembered from one call of the command line to the next. Imports no torch.

Hydra composes a config in a fifth of a second: too long to find out that each of 1,000 jobs is finished. So the plain
values of a job's config are remembered by what was typed, and used again only while everything that decided them is as
it was: the YAML files of every folder on Hydra's search path, the environment variables that they or the overrides
name, the working directory, and peftlab's own sources. The values are checked against the schema each time, and the
run's key, which depends on the content of data files and weights, is computed each time: neither is remembered.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from peftlab import class_names, interpolations
from peftlab.composition import composed
from peftlab.config import RunConfig, check, from_plain, resolved
from peftlab.errors import PeftlabError
from peftlab.files import cache_folder
from peftlab.hydra_changes import GENERATED
from peftlab.reading import read_bytes
from peftlab.records import identity_tags
from peftlab.remembered import recall, remember
from peftlab.sweeps.jobs import Job
from peftlab.sweeps.template import Templates
from peftlab.version import __version__

SOURCES = Path(__file__).parents[1]
"""The folder of peftlab's own sources."""
LIMIT = 20_000
"""Jobs remembered for one folder and primary config."""

_PURE = (
    "oc.select",
    "oc.decode",
    "oc.create",
    "oc.dict.keys",
    "oc.dict.values",
    "oc.deprecated",
    *interpolations.NAMES,
)
"""Resolvers whose value follows from the config and the chosen files alone."""


class ConfigCache:
    """Checked configs of jobs, composed only where nothing is remembered."""

    def __init__(self) -> None:
        self._files: dict[Path, dict[str, Any]] = {}
        self._changed: set[Path] = set()
        self._state = _State()

    def __enter__(self) -> ConfigCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.save()

    def refresh(self) -> None:
        """Look at config files, sources and environment again before the next job."""
        self._state = _State()

    def config(self, job: Job) -> RunConfig:
        """The checked config of ``job``.

        Raises:
            ConfigError: if it does not compose, or does not fit the schema.
        """
        path, key = _file_of(job), _sha256("\0".join(job.overrides))
        entries = self._entries(path)
        entry = entries.get(key)
        if entry is not None and self._state.holds(entry["depends_on"]):
            with contextlib.suppress(PeftlabError):  # composing says in which file the mistake stands
                return from_plain(entry["values"])
        try:
            run, whole = self._state.templates.composed(job)
            values = resolved(run)
            config = from_plain(values)
        except (PeftlabError, HydraException, OmegaConfBaseException):
            # Hydra as a whole says what is wrong, and where.
            run = whole = composed(job.overrides, config_dir=job.config_dir, config_name=job.config_name)
            config = check(whole)
            values = resolved(whole)
        entries.pop(key, None)
        self._changed.add(path)
        depends = self._state.dependencies(run, whole, job.overrides)
        if depends is not None and _survives_json(values):
            entries[key] = {"depends_on": depends, "values": values}
        return config

    def save(self) -> None:
        """Write what is new. A cache that cannot be written costs time only."""
        for path in self._changed:
            kept = {**_read(path), **self._files[path]}  # another launcher may have written meanwhile
            kept = {key: entry for key, entry in kept.items() if self._state.holds(entry["depends_on"])}
            text = json.dumps(dict(list(kept.items())[-LIMIT:]), separators=(",", ":"))
            remember(path, text.encode(errors="surrogatepass"))
        self._changed.clear()

    def _entries(self, path: Path) -> dict[str, Any]:
        if path not in self._files:
            self._files[path] = _read(path)
        return self._files[path]


class _State:
    """Files, sources and environment as they are now; each looked at once."""

    def __init__(self) -> None:
        self._folders: dict[str, tuple[str, frozenset[str]]] = {}
        self._held: dict[str, bool] = {}
        self._sources = _source_state()
        self.templates = Templates()

    def holds(self, depends: dict[str, Any]) -> bool:
        """Whether everything that decided a remembered config is as it was."""
        key = json.dumps(depends, sort_keys=True)
        if key not in self._held:
            self._held[key] = (
                depends["sources"] == self._sources
                and all(self._folder(path)[0] == digest for path, digest in depends["folders"].items())
                and all(_variable(name) == value for name, value in depends["environment"].items())
            )
        return self._held[key]

    def dependencies(self, run: DictConfig, whole: DictConfig, overrides: Sequence[str]) -> dict[str, Any] | None:
        """What decided the values of ``run``; None if that cannot be told, and so nothing may be remembered.

        Args:
            run: the run's part of what was composed, not resolved.
            whole: a composition from the same files, with its ``hydra`` node.
            overrides: the job's.
        """
        if not _repeatable(run) or whole.hydra.runtime.choices.get("peft") in GENERATED:
            return None
        folders: dict[str, str] = {}
        names = set(_variables("\n".join(overrides)))
        for source in whole.hydra.runtime.config_sources:
            if source.schema == "file":
                digest, named = self._folder(str(source.path))
                folders[str(source.path)] = digest
                names |= named
            elif source.schema != "structured" and source.path not in ("hydra.conf", ""):
                return None  # configs inside a Python package
        if any(re.fullmatch(r"\w+", name) is None for name in names):
            return None  # a variable whose name is computed
        return {
            "sources": self._sources,
            "folders": folders,
            "environment": {name: _variable(name) for name in sorted(names)},
        }

    def _folder(self, path: str) -> tuple[str, frozenset[str]]:
        """Digest of the YAML files below ``path``, and the environment variables that they name."""
        if path not in self._folders:
            digest, names = hashlib.sha256(), set()
            for file in _yaml_files(Path(path)):
                try:
                    content = read_bytes(file)
                except OSError:
                    content = b"unreadable"
                digest.update(f"{file} {len(content)}\n".encode() + content)
                names |= set(_variables(content.decode(errors="replace")))
            self._folders[path] = (digest.hexdigest(), frozenset(names))
        return self._folders[path]


def _yaml_files(folder: Path) -> Iterator[Path]:
    """YAML files below ``folder`` in a fixed order, without those of hidden folders and of runs."""
    seen: set[str] = set()
    for path, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(path)
        if real in seen or (path != str(folder) and {"record.json", ".lock"} & set(files)):
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(path, name) for name in sorted(files) if name.endswith((".yaml", ".yml")))


def _variables(text: str) -> list[str]:
    """What stands after ``oc.env:``, up to a comma or the closing bracket."""
    return [name.strip() for name in re.findall(r"oc\.env\s*:([^,}]*)", text)]


def _variable(name: str) -> str | None:
    value = os.environ.get(name)
    return None if value is None else _sha256(value)


def _repeatable(run: DictConfig) -> bool:
    """Whether ``run`` interpolates nothing but itself, the environment and chosen options."""
    values = OmegaConf.to_container(run, resolve=False)
    assert isinstance(values, dict)
    text = json.dumps({name: value for name, value in values.items() if name != "hydra"}, default=str)
    found = re.findall(r"\$\{\s*([\w.]*)\s*(:[^}]*\}|\})", text)
    return len(found) == text.count("${") and all(_is_repeatable(name, rest) for name, rest in found)


def _is_repeatable(name: str, rest: str) -> bool:
    if rest == "}":
        return name.lstrip(".").partition(".")[0] != "hydra"
    if name == "hydra":
        return rest.startswith((":runtime.choices.", ":runtime.cwd}"))
    return name == "oc.env" or (name in _PURE and "hydra" not in rest)


def _survives_json(values: dict[str, Any]) -> bool:
    try:
        return bool(json.loads(json.dumps(values, allow_nan=False)) == values)
    except (TypeError, ValueError):
        return False


def _source_state() -> str:
    """Digest of the versions that take part in composing, of peftlab's sources by size and time, and of what it says of
    identities: which changes of numbers have names, and which classes have moved."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("hydra-core", "omegaconf", "pyyaml")]
    facts = [__version__, platform.python_version(), *versions]
    facts += [f"tag {tag.name}" for tag in identity_tags.TAGS]
    facts += [f"{old} is {new}" for old, new in class_names.MOVED.items()]
    for path, folders, files in os.walk(SOURCES):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        for name in sorted(files):
            if name.endswith(".py"):
                stat = os.stat(os.path.join(path, name))  # noqa: PTH116, PTH118  twice as fast, for 200 files
                facts.append(f"{path}/{name} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}")
    return _sha256("\n".join(facts))


def _file_of(job: Job) -> Path:
    place = "\0".join([str(Path.cwd()), job.config_dir or "", job.config_name])
    return cache_folder() / "configs" / f"{_sha256(place)}.json"


def _read(path: Path) -> dict[str, Any]:
    """The remembered jobs of a file; none if it is damaged or not there."""
    text = recall(path)
    entries = {} if text is None else json.loads(text.decode(errors="surrogatepass"))
    return entries if isinstance(entries, dict) else {}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()
