"""The code of classes that are not peftlab's own, as it enters a key: an edited method is another run.

Of each module that a config's classes come from it is what the code says: comments, docstrings and layout do not count,
nor do modules that it imports in turn. Of a notebook or a script, whose lines change all the time, it is its classes.
Imports no torch.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from peftlab.records.identity_rules import FIELD as IDENTITY

FIELD = "code_content"
"""Of the content of files, by group of the config; records of earlier versions do not have it."""
_OWN = "peftlab"


def code_content(config: Any, groups: Iterable[str]) -> dict[str, str]:
    """Group → hash of the code that its classes come from, where they are not peftlab's.

    Args:
        config: a run's, checked.
        groups: names of those of its parts that decide numbers.
    """
    found = {}
    for group in groups:
        classes = {type(node) for node in _dataclasses(getattr(config, group))}
        foreign = {_code_of(kind) for kind in classes if kind.__module__.partition(".")[0] != _OWN}
        if foreign:
            found[group] = hashlib.sha256("".join(sorted(foreign)).encode()).hexdigest()
    return found


def recorded_code(record: Mapping[str, Any]) -> dict[str, str]:
    """What :func:`code_content` was when ``record`` was written; one of an earlier version does not say it."""
    found: Any = record
    for part in (IDENTITY, "content", FIELD):
        found = found.get(part) if isinstance(found, Mapping) else None
    return {str(group): str(code) for group, code in found.items()} if isinstance(found, Mapping) else {}


def changed_code(record: Mapping[str, Any], config: Any) -> dict[str, str]:
    """Group → class of ``config``, where its code is another one than ``record`` says."""
    then = recorded_code(record)
    parts = {field.name for field in fields(config)}
    now = code_content(config, parts.intersection(then))
    return {group: type(getattr(config, group)).__name__ for group in now if now[group] != then[group]}


def _dataclasses(node: Any) -> Iterator[Any]:
    if is_dataclass(node) and not isinstance(node, type):
        yield node
        for field in fields(node):
            yield from _dataclasses(getattr(node, field.name))
    elif isinstance(node, Mapping):
        for value in node.values():
            yield from _dataclasses(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _dataclasses(value)


def _code_of(kind: type) -> str:
    return _of_classes(kind.__module__) if kind.__module__ == "__main__" else _of_module(kind)


@cache  # of the class: what a file holds after its module was imported is not what runs
def _of_module(kind: type) -> str:
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    try:
        return _hash(Path(str(file)).read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):  # compiled, or in an archive
        return _of_classes(kind.__module__)


def _of_classes(module: str) -> str:
    """Of the classes that are made in ``module``; what is typed into a prompt has no source, and is not seen."""
    found = []
    for _, value in sorted(getattr(sys.modules.get(module), "__dict__", {}).items()):
        if isinstance(value, type) and value.__module__ == module:
            with suppress(OSError, TypeError):
                found.append(_hash(textwrap.dedent(inspect.getsource(value))))
    return hashlib.sha256("".join(found).encode()).hexdigest()


def _hash(source: str) -> str:
    """Of what ``source`` says, so that only a change of that is one."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [one for one in body if not _is_text(one)]  # type: ignore[attr-defined]
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()


def _is_text(statement: ast.AST) -> bool:
    """A docstring, of a field too."""
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )
