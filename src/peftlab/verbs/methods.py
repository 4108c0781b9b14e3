"""``peftlab methods [NAME]``: the capability table from the registry, or one method explained."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields
from itertools import pairwise
from typing import Any

from rich.box import SIMPLE_HEAVY
from rich.table import Table

from peftlab.errors import ConfigError, listed, nearest
from peftlab.peft.base import PEFTStrategy, methods
from peftlab.report.result import console


def main(arguments: Sequence[str]) -> int:
    """Print the table, or the docstring and fields of one method."""
    parser = argparse.ArgumentParser("peftlab methods", description="List the PEFT methods, or explain one.")
    parser.add_argument("name", nargs="?", help="a method, for example lora")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    given = parser.parse_args(list(arguments))
    known = dict(methods())
    if given.name is None:
        print(markdown_table(known)) if given.markdown else console().print(_table(known))
        return 0
    if given.name not in known:
        raise ConfigError(f"there is no method '{given.name}'.{nearest(given.name, known)} There are: {listed(known)}.")
    print(explain(known[given.name]))
    return 0


COLUMNS = (
    "method",
    "what it is",
    "encoder",
    "decoder",
    "4/8-bit base",
    "mergeable",
    "trainable without the head",
)


def rows(known: dict[str, type[PEFTStrategy]]) -> list[tuple[str, ...]]:
    """One row a method, in the order of :data:`COLUMNS`."""

    def yes(value: bool) -> str:
        return "yes" if value else "no"

    return [
        (
            name,
            summary(cls),
            yes(cls.supports.encoder),
            yes(cls.supports.decoder),
            yes(cls.supports.quantized),
            yes(cls.supports.mergeable),
            cls.count,
        )
        for name, cls in known.items()
    ]


def summary(cls: type[PEFTStrategy]) -> str:
    """The first line of a method's docstring."""
    return (inspect.getdoc(cls) or "").split("\n")[0].rstrip(".")


def markdown_table(known: dict[str, type[PEFTStrategy]]) -> str:
    """The capability table as the README has it."""
    lines = [COLUMNS, tuple("---" for _ in COLUMNS), *rows(known)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _table(known: dict[str, type[PEFTStrategy]]) -> Table:
    table = Table(box=SIMPLE_HEAVY)
    for column in COLUMNS:
        table.add_column(column)
    for row in rows(known):
        table.add_row(*row)
    return table


def explain(cls: type[PEFTStrategy]) -> str:
    """Source, docstring, and each field with type, default and meaning."""
    module = inspect.getmodule(cls)
    lines = [f"peft={cls.name}    {cls.__module__}", "", (inspect.getdoc(module) or "") if module else "", ""]
    own = [field for field in fields(cls) if field.init]
    lines.append("Fields (set with peft.<field>=…):" if own else "It has no fields.")
    meanings = _field_docs(cls)
    for field in own:
        lines.append(f"  {field.name}: {field.type} = {_default(field)}")
        if meanings.get(field.name):
            lines.append(f"      {meanings[field.name]}")
    return "\n".join(lines)


def _default(field: Field[Any]) -> Any:
    if field.default is not MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not MISSING else "(required)"


def _field_docs(cls: type) -> dict[str, str]:
    """The string under each annotated field, for every dataclass of the class's line."""
    import ast
    import textwrap

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
