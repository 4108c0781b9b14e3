"""``conf/``: where it lies, and what it says of a config class. No class is imported for it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from peftlab.class_names import stable_name
from peftlab.errors import ConfigError

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def config_folder() -> Path:
    """The folder of shipped YAML files: inside an installed wheel, or beside ``src`` in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parents[1] / "conf"


def own_option(group: str, option: str) -> str:
    """How an option that is not in ``conf/`` is found, as a sentence."""
    return f"One of your own: --config-dir FOLDER, where FOLDER/{group}/{option}.yaml names its class."


def shipped_values(group: str, target: str) -> Mapping[str, Any] | None:
    """The fields of the class ``target`` as the first file of ``conf/<group>`` has them that names it; None: none does.

    Every such file says every field of its class.
    """
    wanted = stable_name(target)
    return next((values for name, values in _files(group) if stable_name(name) == wanted), None)


def require_known_fields(group: str, given: Mapping[str, Any]) -> None:
    """Look for fields that the class of ``given`` does not have, if it is one of ``conf/``.

    Raises:
        ConfigError: naming the first.
    """
    from peftlab.schema import UnknownKey  # pydantic is no part of completing a word

    target = given.get("_target_")
    if not isinstance(target, str):
        raise ConfigError(f"{group}._target_ is missing: it names the dataclass of the group.")
    if (known := shipped_values(group, target)) is None:
        return
    for name in given:
        if name != "_target_" and name not in known:
            raise UnknownKey(f"{group}.{name}", known)


@cache
def _files(group: str) -> list[tuple[str, dict[str, Any]]]:
    """Class and fields of each file of ``conf/<group>``."""
    found = []
    for file in sorted((config_folder() / group).glob("*.yaml")):
        values = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)
        found.append((values.pop("_target_"), values))
    return found
