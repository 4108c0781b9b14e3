"""Configs as records hold them: flat, and reduced to what decides a run's numbers beside its seed."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Any

from peftlab.class_names import place_of, stable_name
from peftlab.config import GROUPS, RunConfig
from peftlab.errors import ConfigError
from peftlab.schema import config_class
from peftlab.training.config import TrainerConfig

TARGET = "_target_"
DATA_HASH = "data.hash"
"""Stands among the config keys though it is none: what files hold, which are named there by paths alone."""
COMPUTED = "computed"
"""Stands there too, of runs that were computed otherwise than today: ``before dora-dropout-2``."""


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key → value; the class of a group stands under the group's own name, lists and mappings as JSON."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        key = sys.intern(prefix.rstrip(".") if name == TARGET else f"{prefix}{name}")
        if name == TARGET:
            found[key] = choice(key, stable_name(str(value)))
        elif isinstance(value, dict) and prefix == "":
            found |= flat(value, f"{name}.")
        elif isinstance(value, dict | list):
            found[key] = sys.intern(json.dumps(value, ensure_ascii=False))
        else:
            found[key] = sys.intern(value) if type(value) is str else value
    return found


@cache
def choice(group: str, target: str) -> str:
    """What people call the class of a group: the method's file for ``peft`` (``lora``), else the class (``SGD``)."""
    module, _, name = target.rpartition(".")
    return module.rpartition(".")[2] if group == "peft" and module else name


def identity_of(config: Mapping[str, Any]) -> str:
    """The config without seed and bookkeeping, as JSON: equal for runs that differ in their seed only.

    The run that this one starts from is not in it: the config names it by its path.
    """
    kept: dict[str, Any] = {}
    for name, value in config.items():
        if name == "seed" or name in _bookkeeping(RunConfig):
            continue
        if isinstance(value, dict):
            target = str(value.get(TARGET, ""))
            left_out, later = _left_out(name, target), _added(name, target)
            value = {
                key: stable_name(target) if key == TARGET else inner
                for key, inner in value.items()
                if key not in left_out and not (key in later and inner == later[key])
            }
        kept[name] = value
    return sys.intern(json.dumps(kept, sort_keys=True))


@cache
def decides(key: str, target: str) -> bool:
    """Whether the dotted ``key``, of a group whose class is ``target``, may change a run's numbers beside its seed."""
    group, _, name = key.partition(".")
    if group == "seed" or key == DATA_HASH or group in _bookkeeping(RunConfig):
        return False
    return key == "backbone.from_run" or name not in _left_out(group, target)


@cache
def _left_out(group: str, target: str) -> frozenset[str]:
    return frozenset() if (cls := _class_of(group, target)) is None else _bookkeeping(cls)


@cache
def _added(group: str, target: str) -> Mapping[str, Any]:
    """Fields that came later, which older records do not have, and their defaults."""
    cls = _class_of(group, target)
    return {} if cls is None else {field.name: field.default for field in fields(cls) if field.metadata.get("added")}


@cache
def _class_of(group: str, target: str) -> type | None:
    if group == "trainer":
        return TrainerConfig
    if group not in GROUPS:
        return None
    if place_of(target).startswith("peftlab."):  # a record must not be able to have other modules imported
        try:
            return config_class(target, f"{group}.{TARGET}")
        except ConfigError:  # a class of another version of peftlab
            return GROUPS[group]
    return GROUPS[group]


@cache
def _bookkeeping(cls: type) -> frozenset[str]:
    return frozenset(field.name for field in fields(cls) if field.metadata.get("bookkeeping"))
