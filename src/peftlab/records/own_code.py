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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

FIELD = "code_content"
"""Of the content of files, by group of the config; records of earlier versions do not have it."""
_OWN = "peftlab"


def code_content(config: Any, groups: Sequence[str]) -> dict[str, str]:
    """Group → hash of the code that its classes come from, where they are not peftlab's.

    Args:
        config: a run's, checked.
        groups: names of its parts.
    """
    found = {}
    for group in groups:
        classes = {type(node) for node in _dataclasses(getattr(config, group))}
        foreign = sorted(_code_of(kind) for kind in classes if kind.__module__.partition(".")[0] != _OWN)
        if foreign:
            found[group] = hashlib.sha256("".join(dict.fromkeys(foreign)).encode()).hexdigest()
    return found


def changed_code(record: Mapping[str, Any], config: Any) -> dict[str, str]:
    """Group → class of ``config``, where its code is another one than the record says; it may not say it."""
    then = ((record.get("identity") or {}).get("content") or {}).get(FIELD) or {}
    now = code_content(config, [*then])
    return {group: type(getattr(config, group)).__name__ for group in then if now.get(group) != then[group]}


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
    sources, there = [], sys.modules.get(module)
    for name, value in sorted(vars(there).items()) if there is not None else ():
        if isinstance(value, type) and value.__module__ == module:
            try:
                sources.append(inspect.getsource(value))
            except (OSError, TypeError):  # typed into a prompt: nothing can be said of it
                sources.append(f"class {name}: ...")
    return _hash("\n".join(map(inspect.cleandoc, sources)))


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
