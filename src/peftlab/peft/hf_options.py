"""What HF peft's package says of its types and their options, read from its files without importing it."""

from __future__ import annotations

import ast
import importlib.util
import math
from functools import cache
from pathlib import Path
from typing import Any

from peftlab.errors import ConfigError


def package_folder() -> Path:
    """The folder of the package peft.

    Raises:
        ConfigError: if it is not installed.
    """
    spec = importlib.util.find_spec("peft")
    if spec is None or spec.origin is None:
        raise ConfigError("peft=hf_peft needs the package peft. Run: pip install 'peftlab[peft]'")
    return Path(spec.origin).parent


def hf_types(package: Path) -> set[str]:
    """Names of HF peft's types; empty if they cannot be read so."""
    return {
        node.targets[0].id
        for statement in _statements(package / "utils" / "peft_types.py")
        if isinstance(statement, ast.ClassDef) and statement.name == "PeftType"
        for node in statement.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }


@cache
def option_types(package: Path, peft_type: str) -> dict[str, str] | None:
    """Option → annotation, of the config class of ``peft_type`` and those it is built on; None: not to be read so."""
    path = package / "tuners" / peft_type.lower() / "config.py"
    wanted = f"{peft_type.replace('_', '').lower()}config"
    for statement in _statements(path):
        if isinstance(statement, ast.ClassDef) and statement.name.lower() == wanted:
            return _fields(package, path, statement.name)
    return None


def _fields(package: Path, path: Path, name: str) -> dict[str, str] | None:
    """Field → annotation of the dataclass ``name`` in the file ``path``, those of its bases first."""
    body = _statements(path)
    found = next((one for one in body if isinstance(one, ast.ClassDef) and one.name == name), None)
    if found is None:
        return None
    fields: dict[str, str] = {}
    for base in found.bases:
        if not isinstance(base, ast.Name):
            return None
        if base.id == "PushToHubMixin":  # of transformers, which has no fields
            continue
        source = _file_of(package, path, body, base.id)
        inherited = None if source is None else _fields(package, source, base.id)
        if inherited is None:
            return None
        fields |= inherited
    own = [one for one in found.body if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)]
    return fields | {one.target.id: ast.unparse(one.annotation) for one in own if isinstance(one.target, ast.Name)}


def _file_of(package: Path, path: Path, body: list[ast.stmt], name: str) -> Path | None:
    """The file that the class ``name``, used in ``path``, stands in."""
    for one in body:
        if isinstance(one, ast.ClassDef) and one.name == name:
            return path
        if isinstance(one, ast.ImportFrom) and any(alias.name == name for alias in one.names):
            parts = (one.module or "").split(".")
            if one.level or parts[0] != "peft":
                return None
            return package.joinpath(*parts[1:]).with_suffix(".py")
    return None


def option_fits(annotation: str, value: Any) -> bool:
    """Whether ``value`` is what the ``annotation`` says, as far as that is made of simple types; else True."""
    return _fits(ast.parse(annotation, mode="eval").body, value)


def _fits(node: ast.expr, value: Any) -> bool:
    match node:
        case ast.Constant(None):
            return value is None
        case ast.Constant(str() as quoted):
            return option_fits(quoted, value)
        case ast.BinOp(left, ast.BitOr(), right):
            return _fits(left, value) or _fits(right, value)
        case ast.Subscript(ast.Name("Optional"), inner):
            return value is None or _fits(inner, value)
        case ast.Subscript(ast.Name("Union"), ast.Tuple(branches)):
            return any(_fits(branch, value) for branch in branches)
        case ast.Subscript(ast.Name("Literal"), inner):
            constants = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            return any(isinstance(one, ast.Constant) and one.value == value for one in constants)
        case ast.Subscript(ast.Name("list" | "List"), inner):
            return isinstance(value, list) and all(_fits(inner, one) for one in value)
        case ast.Subscript(ast.Name(name), _):
            return _fits(ast.Name(name), value)
        case ast.Name("int"):
            return isinstance(value, int) and not isinstance(value, bool)
        case ast.Name("float"):
            return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        case ast.Name("bool"):
            return isinstance(value, bool)
        case ast.Name("str"):
            return isinstance(value, str)
        case ast.Name("list" | "List"):
            return isinstance(value, list)
        case ast.Name("dict" | "Dict"):
            return isinstance(value, dict)
    return True


@cache
def _statements(path: Path) -> list[ast.stmt]:
    try:
        return ast.parse(path.read_text(encoding="utf-8")).body
    except (OSError, SyntaxError, ValueError):
        return []
