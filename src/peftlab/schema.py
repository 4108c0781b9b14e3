"""Dataclasses are the schema: find the one a ``_target_`` names, and check values against it.

Checking must not cost the seconds that importing torch takes, yet a method keeps its config beside its
code in one file. So :func:`config_class` reads the dataclass out of the file's source: it runs the class
statement and the light imports above it, and leaves out everything else the file imports or defines.
The methods of such a class are never called; a run imports the real one (:func:`import_class`).
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import math
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from peftlab.class_names import place_of
from peftlab.errors import ConfigError, listed, nearest
from peftlab.fields import NAME_PATTERN

T = TypeVar("T")

# Modules beside the standard library's that import in milliseconds.
_LIGHT = {
    "annotated_types", "pydantic", "peftlab.backbones.config", "peftlab.class_names", "peftlab.errors",
    "peftlab.fields", "peftlab.files", "peftlab.peft.base", "peftlab.peft.hf_options", "peftlab.seeding",
    "peftlab.training.config",
    *(f"peftlab.data.{name}" for name in ("base", "hub", "labels", "packaged", "published", "readers", "splits")),
}  # fmt: skip

# What stands for a module that was read and not imported, by its name.
_STAND_INS: dict[str, ModuleType] = {}


def _is_light(module_name: str) -> bool:
    return module_name in _LIGHT or module_name.partition(".")[0] in sys.stdlib_module_names


def import_class(target: str, key: str) -> type:
    """The class that is or was called ``target`` (``package.module.Class``), really imported.

    Raises:
        ConfigError: naming ``key``, and the part of ``target`` that does not exist.
    """
    target = place_of(target)
    module_name, _, class_name = target.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"{key}={target}: cannot import '{module_name}': {error}") from error
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        raise ConfigError(_no_such_class(key, target, class_name, [n for n in vars(module) if n[:1].isupper()]))
    return found


def config_class(target: str, key: str) -> type:
    """The dataclass that is or was called ``target``, read from its source where that is possible, else imported.

    Raises:
        ConfigError: if there is no such module or class.
    """
    return _read_class(place_of(target), key)


@cache
def _read_class(target: str, key: str) -> type:
    module_name, _, class_name = target.rpartition(".")
    if module_name in sys.modules:
        return import_class(target, key)
    path = _source_path(module_name, target, key)
    if path is None:
        return import_class(target, key)
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    if all(_is_light(name) for name in _imported(tree)):
        return import_class(target, key)
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    if class_name not in classes:
        raise ConfigError(_no_such_class(key, target, class_name, classes))
    try:
        return _run_class_statement(module_name, path, tree, classes, class_name)
    except (NameError, ImportError, AttributeError):
        # The class body uses something heavy; then there is nothing for it but the import.
        return import_class(target, key)


def _imported(tree: ast.Module) -> list[str]:
    """Modules that a file imports when it is imported itself."""
    names: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module or "")
    return names


def _source_path(module_name: str, target: str, key: str) -> Path | None:
    if not module_name or not all(part.isidentifier() for part in module_name.split(".")):
        raise ConfigError(f"{key}={target}: give the full name of a class, as package.module.Class.")
    try:
        spec = importlib.util.find_spec(module_name)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{key}={target}: there is no module '{module_name}' ({error}).") from error
    if spec is None:
        raise ConfigError(
            f"{key}={target}: there is no module '{module_name}'.{_nearest_module(module_name)} "
            "Check the spelling, or that its package is installed here."
        )
    return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None


def _nearest_module(module_name: str) -> str:
    parent, _, last = module_name.rpartition(".")
    spec = importlib.util.find_spec(parent) if parent else None
    if spec is None or not spec.submodule_search_locations:
        return ""
    names = [path.stem for folder in spec.submodule_search_locations for path in Path(folder).glob("*.py")]
    return nearest(last, names)


def _no_such_class(key: str, target: str, class_name: str, known: Any) -> str:
    module_name = target.rpartition(".")[0]
    return (
        f"{key}={target}: '{module_name}' has no class '{class_name}'.{nearest(class_name, known)} "
        f"It has: {listed(known)}."
    )


def _run_class_statement(
    module_name: str, path: Path, tree: ast.Module, classes: dict[str, ast.ClassDef], class_name: str
) -> type:
    """Execute ``class_name``'s statement in a module that holds only its light surroundings."""
    stand_in = _STAND_INS.setdefault(module_name, ModuleType(module_name))
    wanted = classes[class_name]
    bases = {base.id for base in wanted.bases if isinstance(base, ast.Name)}
    body: list[ast.stmt] = []
    for node in tree.body:
        if isinstance(node, ast.Import):
            if all(_is_light(alias.name) for alias in node.names):
                body.append(node)
        elif isinstance(node, ast.ImportFrom):
            if _is_light(node.module or ""):
                body.append(node)
            else:  # a base class may live in a heavy sibling: read it in the same way
                for alias in node.names:
                    if alias.name in bases and node.module:
                        base = config_class(f"{node.module}.{alias.name}", "_target_")
                        setattr(stand_in, alias.asname or alias.name, base)
        elif isinstance(node, ast.ClassDef) and (node is wanted or node.name in bases):
            body.append(node)
    with _stand_ins_in_place():
        exec(compile(ast.Module(body=body, type_ignores=[]), str(path), "exec"), stand_in.__dict__)
        found: type = getattr(stand_in, class_name)
        if dataclasses.is_dataclass(found):
            _adapter(found)  # resolves the annotations
    return found


@contextmanager
def _stand_ins_in_place() -> Iterator[None]:
    """dataclasses and pydantic look a class's module up by its name, to resolve annotations."""
    absent = {name: module for name, module in _STAND_INS.items() if name not in sys.modules}
    sys.modules.update(absent)
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


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
    return f"{key}={given!r} is not allowed: {' or '.join(messages)}.{hint}"


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
