"""What there is to configure, from the dataclasses and the files of ``conf/``: groups, their options, every key.

Nothing is told twice: types are the annotations, meanings the strings under the fields, options the files.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, Field, dataclass, fields
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import annotated_types
import yaml
from pydantic.fields import FieldInfo

from peftlab.class_names import stable_name
from peftlab.config import GROUPS, WITHOUT_DEFAULT, RunConfig
from peftlab.errors import ConfigError, listed, nearest
from peftlab.fields import NAME_PATTERN, is_bookkeeping, names_files
from peftlab.peft.base import method_elsewhere
from peftlab.schema import import_class
from peftlab.shipped import config_folder, own_option
from peftlab.training.config import TrainerConfig
from peftlab.trusted import registered_methods

ABOUT = {
    "data": "the labelled texts and how they are batched",
    "backbone": "the model and its tokenizer",
    "peft": "what trains: the PEFT method",
    "optim": "optimizer and learning rate",
    "schedule": "learning rate over time",
    "trainer": "epochs, devices, precision, selection rule",
    "logger": "where per-step values go",
    "experiment": "whole recipes with their expected result",
    "debug": "quick runs that show that everything fits together",
}
"""Group → what it is, in the order in which people choose."""
RECIPES = ("experiment", "debug")
"""Groups whose files choose among the others."""

ROLE = re.compile(r":(?:py:)?(?:attr|class|data|exc|func|meth|mod|obj):`(?P<name>[^`]+)`")
"""A reference inside a docstring."""
_SENTENCE = re.compile(r"(?<!et al)\.\s|\s{3,}")
"""Where a first sentence ends: a command may follow it on its line."""

Role = Literal["decides", "added", "content", "bookkeeping"]
ROLES: dict[Role, str] = {
    "decides": "part of a run's key",
    "added": "part of a run's key where it is not the default",
    "content": "in a run's key by the content of what it names, not by the path",
    "bookkeeping": "no part of a run's key: it changes no number",
}


@dataclass(frozen=True)
class Key:
    """One key."""

    name: str
    """Below its group: ``rank``."""
    allowed: str
    """In words: ``a whole number, at least 1``."""
    default: str
    """As the command line writes it; empty: it must be given."""
    meaning: str
    role: Role


@dataclass(frozen=True)
class Option:
    """A file of a group: ``data=text_files``."""

    group: str
    name: str
    about: str
    """The comment at its head, without the indent."""
    target: str
    """The dataclass; empty for a recipe."""
    values: dict[str, Any]
    """What the file says of its keys."""

    @property
    def summary(self) -> str:
        """The first sentence of the comment."""
        text = " ".join(line.strip() for line in self.about.split("\n\n", maxsplit=1)[0].splitlines())
        return _SENTENCE.split(text, maxsplit=1)[0].rstrip(".") + "."


_FURTHER: list[Path] = []
"""Folders of configs beside the shipped one: see :func:`also_in`."""


@contextmanager
def also_in(config_dir: str | None) -> Iterator[None]:
    """Inside, options are also the files of a further folder, as ``--config-dir`` has them; None: of none.

    Raises:
        ConfigError: if there is no such folder.
    """
    if config_dir is not None and not Path(config_dir).is_dir():
        raise ConfigError(f"--config-dir {config_dir}: there is no such folder.")
    before = _FURTHER[:]
    _FURTHER[:0] = [] if config_dir is None else [Path(config_dir)]
    try:
        yield
    finally:
        _FURTHER[:] = before


def _files(group: str) -> dict[str, Path]:
    """Option → its file, of which a further folder's stands before the shipped one."""
    return {file.stem: file for folder in (config_folder(), *_FURTHER) for file in (folder / group).glob("*.yaml")}


def import_named(group: str, config_dir: str) -> None:
    """Import the classes that the files of ``group`` in a further folder name: methods are then in the registry.

    Raises:
        ConfigError: for a class that there is not, or a module that nobody here vouches for.
    """
    with also_in(config_dir):
        for name in option_names(group):
            if _files(group)[name].parent.parent != config_folder():
                class_of(option(group, name))


def option_names(group: str) -> list[str]:
    """The files of ``group``."""
    return sorted(_files(group))


def option(group: str, name: str) -> Option:
    """The file ``name`` of ``group``.

    Raises:
        ConfigError: if there is none.
    """
    known = option_names(group)
    if name not in known and group == "peft" and (cls := method_elsewhere(name)) is not None:
        return Option(group, name, (inspect.getdoc(cls) or ""), f"{cls.__module__}.{cls.__qualname__}", {})
    if name not in known:
        known += registered_methods() if group == "peft" else []
        raise ConfigError(
            f"there is no {group}={name}.{nearest(name, known)} The options are: {listed(sorted(known))}. "
            f"{own_option(group, name)}"
        )
    text = _files(group)[name].read_text(encoding="utf-8")
    values = yaml.safe_load(text) or {}
    target = str(values.pop("_target_", "")) or _target_of(group)
    values.pop("defaults", None)
    return Option(group, name, _head(text), target, values)


def _target_of(group: str) -> str:
    return stable_name(TrainerConfig) if group == "trainer" else ""


def _head(text: str) -> str:
    lines: list[str] = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            lines.append(line[1:].removeprefix(" "))
    return textwrap.dedent("\n".join(lines)).strip("\n")


def class_of(found: Option) -> type:
    """The dataclass that ``found`` configures."""
    return import_class(found.target, f"{found.group}._target_")


@cache
def keys_of(cls: type) -> tuple[Key, ...]:
    """The keys of a group's dataclass, in their order."""
    meanings, hints = field_docs(cls), typing.get_type_hints(cls, include_extras=True)
    found = []
    for field in fields(cls):
        if not field.init:
            continue
        if field.default is not MISSING:
            default = written(field.default)
        else:
            default = written(field.default_factory()) if field.default_factory is not MISSING else ""
        role = _role(field) if _enters(cls) else "bookkeeping"
        found.append(Key(field.name, in_words(hints[field.name]), default, meanings.get(field.name, ""), role))
    return tuple(found)


def _enters(cls: type) -> bool:
    """Whether the group that ``cls`` configures is part of a run's key at all; the logger is not."""
    left_out = (GROUPS[field.name] for field in fields(RunConfig) if field.name in GROUPS and is_bookkeeping(field))
    return not issubclass(cls, tuple(left_out))


def _role(field: Field[Any]) -> Role:
    if names_files(field):
        return "content"
    if is_bookkeeping(field):
        return "bookkeeping"
    return "added" if field.metadata.get("added") else "decides"


def top_level() -> tuple[Key, ...]:
    """The keys of a run that are in no group."""
    groups = {*GROUPS, "trainer"}
    return tuple(key for key in keys_of(RunConfig) if key.name not in groups)


def at_the_top() -> dict[str, Any]:
    """What ``conf/train.yaml`` says of them."""
    values = yaml.safe_load((config_folder() / "train.yaml").read_text(encoding="utf-8"))
    found = {key.name: values[key.name] for key in top_level() if key.name in values}
    return found | {"name": "<data>-<backbone>-<peft>"}


def plain(text: str) -> str:
    """``text`` of a docstring without the marks of code: ``:class:`~a.b.C``` is ``C``."""
    return ROLE.sub(named_by, text).replace("``", "")


def named_by(role: re.Match[str]) -> str:
    """What a :data:`ROLE` shows of the name that it refers to."""
    name = role["name"]
    return name.rpartition(".")[2] if name.startswith("~") else name


def every_key() -> Iterator[tuple[str, tuple[str, ...], Key]]:
    """All keys of what ships: group (empty at the top), the options that have it, the key. One a class and name."""
    for key in top_level():
        yield "", (), key
    for group in (*GROUPS, "trainer"):
        by_key: dict[Key, list[str]] = {}
        for name in option_names(group):
            for key in keys_of(class_of(option(group, name))):
                by_key.setdefault(key, []).append(name)
        for key, names in by_key.items():
            yield group, tuple(names), key


def written(value: Any) -> str:
    """``value`` as the command line writes it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(written, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{name}:{written(inner)}' for name, inner in value.items())}}}"
    return f"{value:g}" if isinstance(value, float) else str(value)


# -- types in words ---------------------------------------------------------------------------------------


def in_words(annotation: Any) -> str:
    """What a field of that type takes: ``a whole number, at least 1; or null``."""
    kind = typing.get_origin(annotation)
    if kind in (typing.Union, types.UnionType):
        parts = [in_words(part) for part in typing.get_args(annotation)]
        return "; or ".join(dict.fromkeys(parts))
    if kind is typing.Annotated:
        return _limited(annotation)
    if kind is Literal:
        return f"one of {', '.join(map(written, typing.get_args(annotation)))}"
    if kind in (list, tuple) or (inspect.isclass(kind) and issubclass(kind, Sequence)):
        inner = [part for part in typing.get_args(annotation) if part is not Ellipsis]
        return f"a list, of each: {in_words(inner[0])}" if inner else "a list"
    if kind is dict or (inspect.isclass(kind) and issubclass(kind, typing.Mapping)):
        name, value = typing.get_args(annotation)
        return f"a mapping, from {in_words(name)} to: {in_words(value)}"
    return _PLAIN.get(annotation, getattr(annotation, "__name__", str(annotation)))


_PLAIN: dict[Any, str] = {
    int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null", Any: "anything",
    None: "null",
}  # fmt: skip


def _limited(annotation: Any) -> str:
    of, *limits = typing.get_args(annotation)
    said = [in_words(of)]
    for limit in limits:
        for one in limit.metadata if isinstance(limit, FieldInfo) else [limit]:
            said += [words.format(getattr(one, name)) for kind, name, words in _LIMITS if isinstance(one, kind)]
            if getattr(one, "pattern", None) == NAME_PATTERN:
                said.append("that can name a file")
    return ", ".join(said)


_LIMITS: tuple[tuple[type, str, str], ...] = (
    (annotated_types.Ge, "ge", "at least {:g}"),
    (annotated_types.Gt, "gt", "greater than {:g}"),
    (annotated_types.Le, "le", "at most {:g}"),
    (annotated_types.Lt, "lt", "less than {:g}"),
    (annotated_types.MaxLen, "max_length", "of at most {} characters"),
)


def field_docs(cls: type) -> dict[str, str]:
    """The string under each annotated field, for every dataclass of the class's line."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError, SyntaxError):
            continue
        body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
        for statement, following in pairwise(body):
            if (
                isinstance(statement, ast.AnnAssign)
                and isinstance(statement.target, ast.Name)
                and isinstance(following, ast.Expr)
                and isinstance(following.value, ast.Constant)
            ):
                found[statement.target.id] = " ".join(str(following.value.value).split())
    return found


def left_open(key: str) -> str:
    """What a key takes that ``conf/`` leaves open; empty for others."""
    return f"a {WITHOUT_DEFAULT[key]}" if key in WITHOUT_DEFAULT else ""


def source_file(found: Option) -> Path:
    """The YAML of ``found``; of a method that has none, the file of its class."""
    file = _files(found.group).get(found.name)
    return Path(inspect.getfile(class_of(found))) if file is None else file
