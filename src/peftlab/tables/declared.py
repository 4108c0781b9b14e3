"""Declared tables: YAML files whose ``kind`` names the module of this folder that computes them.

A module ``peftlab/tables/<kind>.py`` has ``compute(content, where) -> Computed``; nothing else is edited for a new
kind. Imports no torch.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from peftlab.errors import ConfigError, first_line, listed, nearest
from peftlab.reading import read_yaml


@dataclass
class Computed:
    """A table that was computed, ready to be printed in any form."""

    title: str
    columns: list[str]
    """The first one groups rows: it is a heading where there is room for headings."""
    numbers: set[str]
    """Columns aligned to the right."""
    rows: list[list[str]]
    records: list[dict[str, Any]]
    """The rows as plain data, one a row."""
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    """Rows that did not come out as declared, in words; any one of them makes the command fail."""
    summary: str = ""
    brief: list[list[str]] | None = None
    """The rows for a terminal, which says once what many of them share; None: as ``rows``."""
    brief_note: str = ""
    """How to read those."""


def tables_folder() -> Path:
    """The folder of declared tables: inside an installed wheel, or beside ``src`` in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "tables" / "declared"
    return installed if installed.is_dir() else package.parents[1] / "sweeps" / "tables"


def known_tables() -> dict[str, Path]:
    """Name → file of every declared table."""
    return {path.stem: path for path in sorted(tables_folder().glob("*.yaml"))}


def read_table(given: str) -> tuple[dict[str, Any], str]:
    """Content of the table called ``given``, or of the YAML file at that path; and where it stands.

    Raises:
        ConfigError: if there is no such table, or the file is none.
    """
    known = known_tables()
    path = Path(given) if given.endswith((".yaml", ".yml")) else known.get(given)
    if path is None:
        raise ConfigError(f"there is no table '{given}'.{nearest(given, known)} There are: {listed(known)}.")
    try:
        content = read_yaml(path)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read {path}: {first_line(error)}.") from error
    if not isinstance(content, dict) or not isinstance(content.get("kind"), str):
        raise ConfigError(f"{path} is no table: it must be a mapping whose 'kind' says how it is computed.")
    return content, str(path)


def compute(given: str) -> Computed:
    """Compute the table called ``given`` (or at that path).

    Raises:
        PeftlabError: if the file declares something that cannot be.
    """
    content, where = read_table(given)
    kind = content["kind"]
    kinds = [path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in ("__init__", "declared")]
    if kind not in kinds:
        raise ConfigError(f"{where}: kind '{kind}' is not known.{nearest(kind, kinds)} The kinds are: {listed(kinds)}.")
    computed: Computed = importlib.import_module(f"peftlab.tables.{kind}").compute(content, where)
    return computed
