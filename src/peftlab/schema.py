"""Dataclasses are the schema: find the one a ``_target_`` names, and check values against it.

The class is imported as it is, from the module that also holds the method's code: nothing is declared twice. So modules
with config classes import nothing heavier than torch when they are imported, and the rest where it is used.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import math
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from peftlab.class_names import place_of
from peftlab.errors import ConfigError, listed, nearest
from peftlab.fields import NAME_PATTERN
from peftlab.process import uncollected
from peftlab.terminal import half_character, printable
from peftlab.trusted import require_trusted

T = TypeVar("T")


def import_class(target: str, key: str) -> type:
    """The class that is or was called ``target`` (``package.module.Class``).

    Raises:
        ConfigError: naming ``key``, and the part of ``target`` that does not exist; or that nobody here vouches for
            the module (:mod:`peftlab.trusted`).
    """
    target = place_of(target)
    module_name, _, class_name = target.rpartition(".")
    module = _import_module(module_name, target, key)
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module_name]
        known = [name for name in own if isinstance(getattr(module, name), type)]
        raise ConfigError(
            f"{key}={target}: '{module_name}' has no class '{class_name}'.{nearest(class_name, known)} "
            f"It has: {listed(known)}."
        )
    return found


def _import_module(name: str, target: str, key: str) -> ModuleType:
    if not name or not all(part.isidentifier() for part in name.split(".")):
        raise ConfigError(f"{key}={target}: give the full name of a class, as package.module.Class.")
    require_trusted(name, f"{key}={target}")
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{key}={target}: there is no module '{name}' ({error}).") from error
    if spec is None:
        raise ConfigError(
            f"{key}={target}: there is no module '{name}'.{_nearest_module(name)} "
            "Check the spelling, or that its package is installed here. The current folder is not looked in by itself: "
            f"a file that lies in it is found after `peftlab allow {name.partition('.')[0]}` there, and one in another "
            "FOLDER with PYTHONPATH=FOLDER in the environment."
        )
    try:
        with uncollected():  # the first brings torch
            return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"{key}={target}: cannot import '{name}': {error}") from error


def _nearest_module(module_name: str) -> str:
    parent, _, last = module_name.rpartition(".")
    spec = importlib.util.find_spec(parent) if parent else None
    if spec is None or not spec.submodule_search_locations:
        return ""
    names = [path.stem for folder in spec.submodule_search_locations for path in Path(folder).glob("*.py")]
    return nearest(last, names)


@cache
def _adapter(cls: Any) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


def check_keys(given: Any, cls: type, prefix: str) -> None:
    """Raise unless every key of ``given`` is a field of the dataclass ``cls``.

    Raises:
        UnknownKey: naming the key, the nearest and all allowed ones.
    """
    allowed = [field.name for field in dataclasses.fields(cls) if field.init]
    for name in given:
        if name != "_target_" and name not in allowed:
            key = f"{prefix}.{name}" if prefix else str(name)
            raise UnknownKey(key, allowed)


class UnknownKey(ConfigError):
    """A config key that is no field of its group."""

    def __init__(self, key: str, allowed: Any) -> None:
        self.key = key
        group, _, name = key.rpartition(".")
        where = f"keys of '{group}'" if group else "top-level keys"
        super().__init__(f"unknown key '{key}'.{nearest(name, allowed)} The {where} are: {listed(allowed)}.")


def validate(given: dict[str, Any], cls: type[T], prefix: str) -> T:
    """An instance of the dataclass ``cls`` from plain values, coerced and range-checked.

    Raises:
        ConfigError: naming each key that does not fit, what was given and what is allowed.
    """
    check_keys(given, cls, prefix)
    values = {name: value for name, value in given.items() if name != "_target_"}
    try:
        instance: T = _adapter(cls).validate_python(values)  # type: ignore[arg-type]
    except ValidationError as error:
        raise BadValue(_explained(prefix, cls, values, error.errors(include_url=False))) from None
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        for key, number in _not_finite(
            getattr(instance, field.name), f"{prefix}.{field.name}" if prefix else field.name
        ):
            raise BadValue([(key, f"{key}={number} is not allowed: it must be a finite number.")])
        if isinstance(value := getattr(instance, field.name), str) and printable(value) != value:
            key = f"{prefix}.{field.name}" if prefix else field.name
            raise BadValue(
                [(key, f"{key}={printable(value)} is not allowed: it has control characters. Leave them out.")]
            )
        for key, half in _halves(getattr(instance, field.name), f"{prefix}.{field.name}" if prefix else field.name):
            raise BadValue([(key, f"{key} is not allowed: it holds {half}, one half of a character. Leave it out.")])
    return instance


class BadValue(ConfigError):
    """One or more values that their fields do not allow."""

    def __init__(self, lines: list[tuple[str, str]]) -> None:
        self.keys = [key for key, _ in lines]
        super().__init__("\n".join(line for _, line in lines))


def at_its_place(message: str, cls: Any, key: str) -> str:
    """``message`` of ``cls``, its fields named where they stand: ``peft.methods[1].rank``, not ``peft.rank``."""
    group, _, inner = key.partition(".")
    if not inner:
        return message
    names = "|".join(re.escape(field.name) for field in dataclasses.fields(cls)) or "$"
    return re.sub(rf"(?<![\w.]){group}\.(?=({names})\b)", f"{key}.", message)


def says_its_place(message: str, key: str) -> bool:
    """Whether ``message`` names ``key``, or something in it."""
    return not key or re.search(rf"(?<![\w.]){re.escape(key)}[.=:\[]", message) is not None


def _explained(prefix: str, cls: Any, values: dict[str, Any], errors: list[ErrorDetails]) -> list[tuple[str, str]]:
    """Key and line of each value that does not fit: pydantic reports a union as one error for each of its branches."""
    by_key: dict[str, list[ErrorDetails]] = {}
    for error in errors:
        by_key.setdefault(_key(prefix, values, error), []).append(error)
    return [(key, _explain(key, cls, group)) for key, group in by_key.items()]


def _key(prefix: str, values: Any, error: ErrorDetails) -> str:
    """The key that an error is about, down to the entry of a list or mapping: ``peft.alpha_pattern.query``."""
    key = prefix
    for number, part in enumerate(error["loc"]):
        if isinstance(values, dict) and (part in values or (number == 0 and error["type"] == "missing")):
            key, values = f"{key}.{part}" if key else str(part), values.get(part)
        elif isinstance(values, list) and isinstance(part, int) and part < len(values):
            key, values = f"{key}[{part}]", values[part]
        else:  # a branch of a union
            break
    return key


def _explain(key: str, cls: Any, errors: list[ErrorDetails]) -> str:
    if errors[0]["type"] == "missing":
        return f"{key} is required and was not given."
    messages = dict.fromkeys(_in_words(error) for error in errors)
    if len(errors[0]["loc"]) == 0:  # a check across fields, raised by __post_init__
        said = at_its_place(" ".join(messages), cls, key)
        return said if says_its_place(said, key) else f"{key}: {said}"
    given = errors[0]["input"]
    hint = ""
    for error in errors:
        if error["type"] == "literal_error" and isinstance(given, str):
            allowed = [
                word.strip("'") for word in str(error.get("ctx", {})["expected"]).replace(" or ", ", ").split(", ")
            ]
            hint = nearest(given, allowed)
    said = f"{key}={given!r} is not allowed: {' or '.join(messages)}"
    return f"{said}{'' if said.endswith(('.', '?')) else '.'}{hint}"


def _halves(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Key and half of every text in ``value`` that is not whole, as YAML and JSON can write one."""
    if isinstance(value, str):
        if half := half_character(value):
            yield key, half
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _halves(str(name), key)
            yield from _halves(inner, f"{key}.{name}")
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _halves(inner, f"{key}[{number}]")


def _not_finite(value: Any, key: str) -> Iterator[tuple[str, float]]:
    """Key and value of every number in ``value``, which may be a free mapping, that is not finite: JSON has none."""
    if isinstance(value, float) and not math.isfinite(value):
        yield key, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _not_finite(inner, f"{key}.{name}")
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _not_finite(inner, f"{key}[{number}]")


def _in_words(error: ErrorDetails) -> str:
    context = error.get("ctx", {})
    match error["type"]:
        case "greater_than_equal":
            return f"it must be at least {context['ge']}"
        case "greater_than":
            return f"it must be greater than {context['gt']}"
        case "less_than":
            return f"it must be less than {context['lt']}"
        case "less_than_equal":
            return f"it must be at most {context['le']}"
        case "literal_error":
            return f"it must be one of {context['expected']}"
        case "int_type" | "int_parsing" | "int_from_float":
            return "it must be a whole number"
        case "float_type" | "float_parsing":
            return "it must be a finite number" if _infinite(error["input"]) else "it must be a number"
        case "finite_number":
            return "it must be a finite number"
        case "bool_type" | "bool_parsing":
            return "it must be true or false"
        case "string_type":
            return "it must be text"
        case "none_required":
            return "it must be null"
        case "list_type":
            return "it must be a list"
        case "dict_type":
            return "it must be a mapping of key: value"
        case "is_instance_of":
            return f"it must be an instance of a method ({context['class']})"
        case "value_error":
            return str(context["error"])
        case "string_too_long":
            return (
                f"it may have at most {context['max_length']} characters and has {len(error['input'])}, so shorten it"
            )
        case "string_pattern_mismatch":
            return _PATTERNS.get(context["pattern"], f"it must match {context['pattern']}")
    return error["msg"][:1].lower() + error["msg"][1:]


def _infinite(given: Any) -> bool:
    """Whether this is YAML's way to write infinity or no number, which Hydra takes as text."""
    return str(given).lower().lstrip("+-") in (".inf", ".nan")


_PATTERNS = {
    NAME_PATTERN: "it must begin with a letter or digit, and have only letters, digits and . _ + = , - (it names files)"
}
"""Patterns that fields must match → in words."""
