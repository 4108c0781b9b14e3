"""What a person has allowed for a folder (``peftlab allow``): modules that may be imported there, a folder of configs.

It stands in one file below the person's home, for each folder by its path, and never in the folder itself: an archive
or a clone that is unpacked there would bring its own leave along. It holds in that folder alone, and not below.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from peftlab.errors import ConfigError
from peftlab.files import write_atomically
from peftlab.reading import read_json


@dataclass(frozen=True)
class Allowed:
    """Of one folder."""

    modules: tuple[str, ...] = ()
    """Modules and packages, by name."""
    config_dir: str | None = None
    """What ``--config-dir`` is where it is not given; relative to the folder."""


def file_of_the_person() -> Path:
    """``~/.config/peftlab/allowed.json``, or where ``$XDG_CONFIG_HOME`` says: an absolute path, as its standard wants.

    Raises:
        RuntimeError: if there is no home.
    """
    given = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    return (given if given.is_absolute() else Path.home() / ".config") / "peftlab" / "allowed.json"


def everywhere() -> dict[str, Allowed]:
    """Folder → what is allowed there.

    Raises:
        ConfigError: if the file cannot be read.
    """
    try:
        path = file_of_the_person()
        found = read_json(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError, RuntimeError):  # a home of somebody else, or none
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}. {_MEND}") from error
    if not isinstance(found, dict) or not all(map(_is_entry, found.values())):
        raise ConfigError(f"{path} is not as peftlab allow writes it. {_MEND}")
    return {folder: Allowed(tuple(one["modules"]), one["config_dir"]) for folder, one in found.items()}


_MEND = "Remove it, and say once more what is allowed: peftlab allow MODULE, in each folder."


def _is_entry(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"modules", "config_dir"}
        and isinstance(value["modules"], list)
        and all(isinstance(name, str) for name in value["modules"])
        and isinstance(value["config_dir"], str | None)
    )


def here() -> Allowed:
    """What is allowed in the current folder."""
    return everywhere().get(_here(), Allowed())


TAKES_CONFIG_DIR = ("train", "check", "estimate", "sweep", "explain", "methods")
"""Commands that look in a further folder of configs; ``submit`` is given ``train`` and its words."""
AS_TYPED = "PEFTLAB_AS_TYPED"
"""Environment variable for processes whose words are whole: nothing is added to them."""


def with_config_dir(words: Sequence[str]) -> tuple[list[str], str | None]:
    """The ``words`` behind ``peftlab``, with the ``--config-dir`` that is allowed here where they say none; and which.

    Raises:
        ConfigError: if the file of what is allowed cannot be read.
    """
    given = list(words)
    place = given.index("train") + 1 if given[:1] == ["submit"] and "train" in given else 1
    takes = place > 1 or (given and given[0] in TAKES_CONFIG_DIR)
    if not takes or os.environ.get(AS_TYPED) or any(word.startswith(("-cd", "--config-d")) for word in given):
        return given, None
    found = here().config_dir
    return (given, None) if found is None else ([*given[:place], "--config-dir", found, *given[place:]], found)


def allow(allowed: Allowed | None) -> None:
    """Note what is allowed in the current folder; None: nothing any more.

    Raises:
        ConfigError: if the file cannot be read.
        PeftlabError: if it cannot be written.
    """
    others: Mapping[str, Allowed] = {folder: one for folder, one in everywhere().items() if folder != _here()}
    noted = {**others, **({} if allowed is None else {_here(): allowed})}
    path = file_of_the_person()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigError(f"{path.parent} cannot be made: {error.strerror}.") from error
    write_atomically(path, json.dumps({folder: asdict(one) for folder, one in noted.items()}, indent=2) + "\n")


def importable() -> tuple[str, ...]:
    """The modules that are allowed in the current folder; from here on they are found in it, too."""
    modules = here().modules
    if modules:
        finder = _InFolder(_here(), modules)
        sys.meta_path[:] = [*(one for one in sys.meta_path if not isinstance(one, _InFolder)), finder]
    return modules


def place_of(module: str) -> str | None:
    """The file that ``module`` would be imported from, if it is allowed here; None: there is none. Imports nothing."""
    top, spec = module.partition(".")[0], None
    with suppress(ValueError):  # __main__ has none
        spec = find_spec(top)
    spec = spec or PathFinder.find_spec(top, [_here()])
    if spec is None:
        return None
    return spec.origin or next(iter(spec.submodule_search_locations or ()), None)


def _here() -> str:
    return str(Path.cwd().resolve())


class _InFolder(MetaPathFinder):
    """Finds the allowed modules in the folder that they were allowed in, and no other; the installed come first."""

    def __init__(self, folder: str, modules: Sequence[str]) -> None:
        self._folder = folder
        self._names = {name.partition(".")[0] for name in modules}

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """As the import system asks; packages find what is inside them by themselves."""
        return PathFinder.find_spec(fullname, [self._folder]) if fullname in self._names else None
