"""What a file in ``sweeps/`` declares. Imports no torch.

    settings:                       choices of the command line (peftlab sweep FILE data_set=packaged)
      data_set:
        hub:      {news: [data=ag_news], reviews: [data=imdb]}
        packaged: {news: [data=bbc_news], reviews: [data=imdb_packaged]}
    cells:
      - {id: pretrain, overrides: [experiment=lecture_pretrain, $news], row: false}
      - {id: lora, label: "LoRA, rank {peft.rank}", from: pretrain, grid: {peft.rank: [1, 2]},
         overrides: [experiment=lecture_lora, $reviews]}

The first option of a setting is the default. ``$news`` stands for that option's overrides. ``from`` names the cell
whose run of the same seed a cell's runs start from (``backbone.from_run``). A ``grid`` makes one cell a combination.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from peftlab.errors import ConfigError, listed, nearest
from peftlab.fields import NonNegativeFloat, NonNegativeInt
from peftlab.schema import validate


@dataclass(kw_only=True)
class Cell:
    """Runs that differ in their seed only."""

    id: str
    label: str = ""
    """What the table calls it; ``{key}`` stands for the value of a key of ``grid``."""
    overrides: list[str]
    start: str | None = None
    """``from`` in the file: the cell to start from."""
    grid: dict[str, list[Any]] = field(default_factory=dict)
    row: bool = True
    """Whether it is a row of the table."""
    curve: bool = False
    """Whether its learning curve is drawn."""

    def expanded(self) -> Iterator[Cell]:
        """One cell for each combination of the grid; itself without one."""
        if not self.grid:
            yield self
            return
        for values in itertools.product(*self.grid.values()):
            chosen = dict(zip(self.grid, values, strict=True))
            label = self.label
            for key, value in chosen.items():
                label = label.replace(f"{{{key}}}", str(value))
            suffix = "_".join(str(value) for value in values)
            more = [f"{key}={value}" for key, value in chosen.items()]
            yield replace(self, id=f"{self.id}_{suffix}", label=label, overrides=self.overrides + more, grid={})


@dataclass(kw_only=True)
class Column:
    """A column of the table."""

    title: str
    value: str
    """Where the value stands in a record: ``metrics.test.accuracy``."""
    format: Literal["accuracy", "difference", "count", "seconds"] = "accuracy"


@dataclass(kw_only=True)
class Expected:
    """A figure that somebody else gave for a cell."""

    cell: str
    column: str
    value: float
    tolerance: NonNegativeFloat
    source: str


@dataclass(kw_only=True)
class Sweep:
    """A declared table."""

    name: str
    title: str
    source: str
    """Paper or lecture."""
    command: str
    cost: str
    selection: str
    """How each run's weights are chosen; on validation only."""
    notes: str = ""
    """Printed under the table."""
    settings: dict[str, dict[str, dict[str, list[str]]]] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)
    """For all cells."""
    seeds: list[NonNegativeInt]
    metric: str
    """Column value that the figures show."""
    cells: list[Cell]
    columns: list[Column]
    expected: list[Expected] = field(default_factory=list)


@dataclass(frozen=True)
class Job:
    """One run of a sweep."""

    cell: str
    seed: int
    overrides: tuple[str, ...]
    start: str | None

    @property
    def title(self) -> str:
        """What people call it."""
        return f"{self.cell}, seed {self.seed}"


def read_sweep(path: Path) -> Sweep:
    """The sweep that the file ``path`` declares, with its grids expanded.

    Raises:
        ConfigError: naming the file and the key that does not fit.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        there = listed(str(file) for file in path.parent.glob("*.yaml")) if path.parent.is_dir() else "none"
        raise ConfigError(f"cannot read the sweep '{path}': {error}. Sweeps there: {there}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(values, dict) or not isinstance(values.get("cells"), list):
        raise ConfigError(f"{path} declares no sweep: it needs name, title, seeds, cells, columns, …")
    try:
        cells = [_cell(given, number) for number, given in enumerate(values["cells"])]
        columns: list[Column] = _parts(values, "columns", Column)
        expected: list[Expected] = _parts(values, "expected", Expected)
        rest = {key: value for key, value in values.items() if key not in ("cells", "columns", "expected")}
        sweep = validate(rest | {"cells": [], "columns": [], "expected": []}, Sweep, "")
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    found: Sweep = replace(
        sweep, cells=[one for cell in cells for one in cell.expanded()], columns=columns, expected=expected
    )
    _check(found, path)
    return found


def _parts(values: dict[str, Any], key: str, cls: type) -> list[Any]:
    given = values.get(key) or []
    if not isinstance(given, list):
        raise ConfigError(f"'{key}' must be a list, got {given!r}.")
    return [validate(_mapping(part, f"{key}[{i}]"), cls, f"{key}[{i}]") for i, part in enumerate(given)]


def _mapping(given: Any, key: str) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise ConfigError(f"{key} must be a mapping, got {given!r}.")
    return given


def _cell(given: Any, number: int) -> Cell:
    key = f"cells[{number}]"
    values = dict(_mapping(given, key))
    if "from" in values:  # a word of Python's own
        values["start"] = values.pop("from")
    cell: Cell = validate(values, Cell, key)
    return cell


def _check(sweep: Sweep, path: Path) -> None:
    ids = [cell.id for cell in sweep.cells]
    for cell in sweep.cells:
        if ids.count(cell.id) > 1:
            raise ConfigError(f"{path}: two cells are called '{cell.id}'.")
        if cell.start is not None and cell.start not in ids[: ids.index(cell.id)]:
            raise ConfigError(
                f"{path}: cell '{cell.id}' starts from '{cell.start}', which is no cell above it."
                f"{nearest(cell.start, ids)} Cells above: {listed(ids[: ids.index(cell.id)])}."
            )
    if not sweep.seeds or len(set(sweep.seeds)) < len(sweep.seeds):
        raise ConfigError(f"{path}: seeds must be different numbers, at least one, got {sweep.seeds}.")
    paths = [column.value for column in sweep.columns]
    if sweep.metric not in paths:
        raise ConfigError(f"{path}: metric '{sweep.metric}' is no column's value. Values: {listed(paths)}.")
    for one in sweep.expected:
        if one.cell not in ids:
            raise ConfigError(f"{path}: expected names the cell '{one.cell}'.{nearest(one.cell, ids)} There is none.")
        if one.column not in paths:
            raise ConfigError(f"{path}: expected names '{one.column}', which is no column's value.")


def plan(sweep: Sweep, chosen: dict[str, str], more: Sequence[str]) -> list[Job]:
    """The jobs of ``sweep``, those that others start from first.

    Args:
        sweep: what was declared.
        chosen: setting → option; the first option of each other setting is taken.
        more: overrides for all jobs, from the command line.

    Raises:
        ConfigError: for an unknown setting or option, or a ``$word`` that no setting explains.
    """
    words: dict[str, list[str]] = {}
    for setting, options in sweep.settings.items():
        option = chosen.get(setting, next(iter(options)))
        if option not in options:
            raise ConfigError(
                f"{setting}={option}: unknown option.{nearest(option, options)} The options are: {listed(options)}."
            )
        words |= options[option]
    jobs = []
    for cell in sweep.cells:
        overrides: list[str] = []
        for entry in [*sweep.overrides, *cell.overrides]:
            if not entry.startswith("$"):
                overrides.append(entry)
            elif entry[1:] in words:
                overrides += words[entry[1:]]
            else:
                raise ConfigError(f"cell '{cell.id}': nothing says what '{entry}' stands for. Known: {listed(words)}.")
        jobs += [
            Job(cell.id, seed, (*overrides, f"name={sweep.name}", *more, f"seed={seed}"), cell.start)
            for seed in sweep.seeds
        ]
    return jobs
