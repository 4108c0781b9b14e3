"""``peftlab allow``: say once, for this folder, which modules of one's own may be imported, and where configs are."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from peftlab.allowed import Allowed, allow, everywhere, file_of_the_person, here, place_of
from peftlab.errors import ConfigError
from peftlab.terminal import say

DESCRIPTION = """\
Say once, for the folder in which you call it, which modules of your own a config may name, and which folder of configs
is looked in where no --config-dir is given. Importing a module runs its code. Without arguments: list what is
allowed."""


def main(arguments: Sequence[str]) -> int:
    """Note it, or list it.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser("peftlab allow", description=DESCRIPTION)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="a module or package, in this folder or installed")
    parser.add_argument("-cd", "--config-dir", metavar="FOLDER", help="a further folder of configs")
    parser.add_argument("--forget", action="store_true", help="allow nothing in this folder any more")
    given = parser.parse_args(list(arguments))
    before = here()
    if given.forget:
        if given.modules or given.config_dir:
            raise ConfigError("--forget takes back all that is allowed in this folder: give it alone.")
        allow(None)
        say(f"{Path.cwd()}: nothing is allowed here any more.")
        return 0
    for module in given.modules:
        _require_module(module)
    if given.config_dir is not None and not Path(given.config_dir).is_dir():
        raise ConfigError(f"--config-dir {given.config_dir}: there is no such folder.")
    if given.modules or given.config_dir is not None:
        modules = dict.fromkeys([*before.modules, *given.modules])
        allow(Allowed(tuple(modules), before.config_dir if given.config_dir is None else given.config_dir))
    say("\n".join(_listed()))
    return 0


def _require_module(name: str) -> None:
    """Refuse what is no module of one's own."""
    if name.endswith(".py") or not all(part.isidentifier() for part in name.split(".")):
        hint = f" Did you mean '{Path(name).stem}'?" if name.endswith(".py") else ""
        raise ConfigError(f"'{name}' is no name of a module: give one as gated_lora, or my_package.methods.{hint}")
    top = name.partition(".")[0]
    if top in (*sys.stdlib_module_names, "peftlab"):
        raise ConfigError(f"'{name}' is no module of yours. Allow the one that has your class.")
    if place_of(name) is None:
        raise ConfigError(
            f"there is no module '{name}': neither {top}.py nor a package {top}/ is in {Path.cwd()}, and none is "
            "installed. Call this in the folder that has it, which is where you train."
        )


def _listed() -> Iterator[str]:
    found = everywhere()
    if not found:
        yield "Nothing is allowed: peftlab allow MODULE --config-dir FOLDER, in the folder in which you train."
        return
    current = str(Path.cwd().resolve())
    for folder in sorted(found, key=lambda one: (one != current, one)):
        yield f"{folder}{' (this folder)' if folder == current else ''}"
        for module in found[folder].modules:
            place = place_of(module) if folder == current else None
            yield f"  may import {module}{f', {place}' if place else ''}"
        if found[folder].config_dir is not None:
            yield f"  --config-dir {found[folder].config_dir}, where none is given"
    yield f"{file_of_the_person()} says so; peftlab allow --forget takes back what is allowed in this folder."
