"""Reading a sweep file, and what must hold between its parts. Imports no torch."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from peftlab.errors import ConfigError, listed, nearest
from peftlab.fields import NAME_PATTERN
from peftlab.metric_names import MetricName, record_part
from peftlab.reading import Unreadable, read_yaml
from peftlab.report.columns import Column, require_form_means_something
from peftlab.report.number_text import FORMATS
from peftlab.schema import check_keys, validate
from peftlab.sweeps.declaration import (
    Arm,
    Expected,
    Published,
    Range,
    Search,
    Sweep,
    assignments,
    key_of,
)

_LISTS: dict[str, type] = {"columns": Column, "expected": Expected, "published": Published}
_NEVER_CHOSEN = ("name", "seed", "output_dir", "force", "logger")


def read_sweep(path: Path) -> Sweep:
    """The sweep that the file ``path`` declares, with its grids expanded.

    Raises:
        ConfigError: naming the file and the key that does not fit.
    """
    try:
        values = read_yaml(path, UniqueKeys)
    except (OSError, Unreadable) as error:
        there = listed(str(file) for file in path.parent.glob("*.yaml")) if path.parent.is_dir() else "none"
        raise ConfigError(f"cannot read the sweep '{path}': {error}. Sweeps there: {there}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(values, dict) or not isinstance(values.get("cells"), list):
        raise ConfigError(
            f"{path} declares no sweep: it needs name, seeds and cells. `peftlab sweep --new FILE` writes one to begin "
            "with."
        )
    try:
        cells = [_arm(given, f"cells[{number}]") for number, given in enumerate(values["cells"])]
        lists = {key: _parts(values, key, cls) for key, cls in _LISTS.items()}
        _check_search(values.get("search"), "search")
        sweep: Sweep = validate({**values, "cells": [], **{key: [] for key in lists}}, Sweep, "")
        found = replace(
            sweep,
            cells=_expanded(sweep, cells),
            columns=lists["columns"],
            expected=lists["expected"],
            published=lists["published"],
        )
        _check_cells(found)
        _check_overrides(found)
        _check_choices(found)
        _check_table(found)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return found


class UniqueKeys(yaml.SafeLoader):
    """Plain YAML, in which a key may stand once: PyYAML itself would take the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As always; raises a YAMLError that says where, for a key that stands twice."""
        keys = [(self.construct_object(key), key) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        seen: list[Any] = []
        for name, key in keys:
            if name in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key '{name}' stands twice", problem_mark=key.start_mark
                )
            seen.append(name)
        return super().construct_mapping(node, deep)


def _parts(values: dict[str, Any], key: str, cls: type) -> list[Any]:
    given = values.get(key) or []
    if not isinstance(given, list):
        raise ConfigError(f"'{key}' must be a list, got {given!r}.")
    return [validate(_mapping(part, f"{key}[{i}]"), cls, f"{key}[{i}]") for i, part in enumerate(given)]


def _mapping(given: Any, key: str) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise ConfigError(f"{key} must be a mapping, got {given!r}.")
    return given


def _arm(given: Any, key: str) -> Arm:
    values = dict(_mapping(given, key))
    if "from" in values:  # a word of Python's own
        values["start"] = values.pop("from")
    _check_search(values.get("search"), f"{key}.search")
    arm: Arm = validate(values, Arm, key)
    return arm


def _check_search(given: Any, key: str) -> None:
    """Name the key within a search that does not fit: pydantic would leave out keys it does not know."""
    if not given:
        return
    for name, search in _mapping(given, key).items():
        if name != "optuna":
            raise ConfigError(f"unknown key '{key}.{name}'. The searches there are: optuna.")
        values = _mapping(search, f"{key}.optuna")
        check_keys(values, Search, f"{key}.optuna")
        space = _mapping(values.get("space") or {}, f"{key}.optuna.space")
        for one, limits in space.items():
            validate(_mapping(limits, f"{key}.optuna.space: {one}"), Range, f"{key}.optuna.space: {one}")
        validate(values, Search, f"{key}.optuna")


def _expanded(sweep: Sweep, cells: list[Arm]) -> list[Arm]:
    """The cells with what stands above all of them, a cell for each combination of a grid."""
    found: list[Arm] = []
    for arm in cells:
        if arm.grid is None:
            arm = replace(arm, grid=sweep.grid)
        if arm.tune is None and arm.search is None:
            arm = replace(arm, tune=sweep.tune, search=sweep.search)
        if wrong := [key for key in arm.grid or {} if key.partition(".")[0] in _NEVER_CHOSEN]:
            raise ConfigError(f"cell '{arm.id}': '{wrong[0]}' cannot stand in a grid: it is no part of a method.")
        chosen = [*(arm.tune or {}), *(search.space if (search := arm.optuna()) else {})]
        if twice := [key for key in arm.grid or {} if key in chosen]:
            raise ConfigError(f"cell '{arm.id}': '{twice[0]}' stands in its grid and among what is to be chosen.")
        found += arm.expanded()
    return found


def _check_cells(sweep: Sweep) -> None:
    ids = [arm.id for arm in sweep.cells]
    for number, arm in enumerate(sweep.cells):
        if not re.fullmatch(NAME_PATTERN, arm.id):
            raise ConfigError(
                f"the id '{arm.id}', with the values of its grid, must have only letters, digits and . _ + = , - "
                "(it names files). Write the cells out, each with an id of its own."
            )
        if ids.count(arm.id) > 1:
            raise ConfigError(f"two cells are called '{arm.id}'.")
        if arm.start is not None and arm.start not in ids[:number]:
            raise ConfigError(
                f"cell '{arm.id}' starts from '{arm.start}', which is no cell above it."
                f"{nearest(arm.start, ids)} Cells above: {listed(ids[:number])}."
            )
    if not sweep.seeds or len(set(sweep.seeds)) < len(sweep.seeds):
        raise ConfigError(f"seeds must be different numbers, at least one, got {sweep.seeds}.")


def _check_overrides(sweep: Sweep) -> None:
    """Refuse what would be overridden in silence, or would take a cell's runs out of the table."""
    for arm in sweep.cells:
        for entry in arm.overrides:
            if key_of(entry) in ("name", "seed"):
                raise ConfigError(
                    f"cell '{arm.id}': '{entry}' has no effect: name and seeds stand at the head of the file."
                )
            if key_of(entry) == "output_dir":
                raise ConfigError(
                    f"cell '{arm.id}': '{entry}': the runs of a sweep lie in one folder. Put it among the overrides "
                    "above the cells, or behind the file on the command line."
                )
    for where, entries in [("overrides", sweep.overrides), *_option_overrides(sweep)]:
        if wrong := [entry for entry in entries if key_of(entry) in ("name", "seed")]:
            raise ConfigError(f"{where}: '{wrong[0]}' has no effect: name and seeds stand at the head of the file.")


def _option_overrides(sweep: Sweep) -> list[tuple[str, list[str]]]:
    return [
        (f"settings.{setting}.{option}.{word}", entries)
        for setting, options in sweep.settings.items()
        for option, words in options.items()
        for word, entries in words.items()
    ]


def _check_tuned_by(path: str) -> None:
    metric = MetricName.from_record(path)
    if path.startswith((record_part("test"), "forgetting")):
        raise ConfigError(f"tune_by '{path}': nothing is tuned on test data; name a value of validation.")
    if metric is None and not path.startswith("selection."):
        raise ConfigError(
            f"tune_by '{path}' must lie under {record_part('validation')}, {record_part('train')} or selection, "
            f"as {MetricName('validation', 'loss').in_record} does."
        )


def _check_choices(sweep: Sweep) -> None:
    if sweep.tune_by is not None:
        _check_tuned_by(sweep.tune_by)
    for arm in sweep.cells:
        search = arm.optuna()
        if arm.tune and search:
            raise ConfigError(f"cell '{arm.id}' has a tune grid and a search: choose one.")
        keys = [*(arm.tune or {}), *(search.space if search else {})]
        if wrong := [key for key in keys if key.partition(".")[0] in _NEVER_CHOSEN]:
            raise ConfigError(f"cell '{arm.id}': '{wrong[0]}' cannot be tuned: it is no part of a method.")
        seen: set[tuple[str, ...]] = set()
        for candidate in arm.candidates():
            if (said := tuple(assignments(candidate))) in seen:
                raise ConfigError(f"cell '{arm.id}': tune names {', '.join(said)} twice.")
            seen.add(said)


def _check_table(sweep: Sweep) -> None:
    ids = [arm.id for arm in sweep.cells]
    paths = [column.value for column in sweep.columns]
    for column in sweep.columns:
        require_form_means_something(column)
        if column.format == "text":
            numeric = [form for form in FORMATS if form != "text"]
            raise ConfigError(
                f"column '{column.title}': format 'text' has no mean over seeds; it is for peftlab report --columns. "
                f"A sweep's columns are numbers: {listed(numeric)}."
            )
    if paths and sweep.metric not in paths:
        raise ConfigError(f"metric '{sweep.metric}' is no column's value. Values: {listed(paths)}.")
    if sweep.baseline is not None and sweep.baseline not in [arm.id for arm in sweep.cells if arm.row]:
        raise ConfigError(
            f"baseline '{sweep.baseline}' is no row.{nearest(sweep.baseline, ids)} Rows: "
            f"{listed(arm.id for arm in sweep.cells if arm.row)}."
        )
    for kind, given in (("expected", sweep.expected), ("published", sweep.published)):
        for one in given:
            if one.cell not in ids:
                raise ConfigError(f"{kind} names the cell '{one.cell}'.{nearest(one.cell, ids)} There is none.")
            if one.column not in paths:
                raise ConfigError(f"{kind} names '{one.column}', which is no column's value.")
            if not one.source.strip():
                raise ConfigError(f"{kind} of cell '{one.cell}' has no source: say who gives the figure, and where.")
