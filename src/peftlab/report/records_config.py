"""Configs as records hold them: flat, and reduced to what decides a run's numbers beside its seed."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

from peftlab.class_names import stable_name
from peftlab.records.identity_rules import Rules
from peftlab.records.own_code import recorded_code

TARGET = "_target_"
DATA_HASH = "data.hash"
"""Stands among the config keys though it is none: what files hold, which are named there by paths alone."""
CODE = "code"
"""``peft.code`` stands among the config keys too: the hash of the code of a class that is not peftlab's."""
HASH_LETTERS = 12
"""Letters that are shown of a hash."""
COMPUTED = "computed"
"""Stands there too, of runs that were computed otherwise than today: ``before dora-dropout-2``."""


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key → value; the class of a group stands under the group's own name, lists and mappings as JSON."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        key, kind = _key(prefix, name), type(value)  # as JSON and YAML have them
        if name == TARGET:
            found[key] = choice(key, str(value))
        elif kind is str:
            found[key] = sys.intern(value)
        elif kind is dict and prefix == "":
            found |= flat(value, f"{name}.")
        elif kind is dict or kind is list:
            found[key] = sys.intern(json.dumps(value, ensure_ascii=False))
        else:
            found[key] = value
    return found


def code_keys(record: Mapping[str, Any]) -> dict[str, str]:
    """``{peft.code: …}`` of a record whose method is not peftlab's: what it computes, its config does not say."""
    return {f"{group}.{CODE}": sys.intern(code[:HASH_LETTERS]) for group, code in recorded_code(record).items()}


@cache
def _key(prefix: str, name: str) -> str:
    return sys.intern(prefix.rstrip(".") if name == TARGET else f"{prefix}{name}")


def choice(group: str, target: str) -> str:
    """What people call the class of a group: the method's file for ``peft`` (``lora``), else the class (``SGD``)."""
    return _called(group, stable_name(target))


@cache
def _called(group: str, stable: str) -> str:
    module, _, name = stable.rpartition(".")
    return module.rpartition(".")[2] if group == "peft" and module else name


def identity_of(config: Mapping[str, Any], rules: Rules) -> str:
    """The config without seed and bookkeeping, as JSON: equal for runs that differ in their seed only.

    The run that this one starts from is not in it: the config names it by its path.

    Args:
        config: of a record.
        rules: what the record says of its fields.
    """
    kept: dict[str, Any] = {}
    for name, value in config.items():
        if name == "seed" or name in rules.bookkeeping:
            continue
        if isinstance(value, dict):
            value = {
                key: stable_name(str(inner)) if key == TARGET else inner
                for key, inner in value.items()
                if rules.enters(f"{name}.{key}", inner)
            }
        kept[name] = value
    return sys.intern(json.dumps(kept, sort_keys=True))


def decides(key: str, rules: Rules) -> bool:
    """Whether the dotted ``key`` may change a run's numbers beside its seed."""
    group = key.partition(".")[0]
    if group == "seed" or key == DATA_HASH or (group in rules.bookkeeping and key != "continue_from"):
        return False
    return key in ("backbone.from_run", "continue_from") or key not in rules.bookkeeping
