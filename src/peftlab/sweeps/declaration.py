"""What a file in ``sweeps/`` declares. Imports no torch.

    settings:                       choices of the command line (peftlab sweep FILE data_set=packaged)
      data_set:
        hub:      {news: [data=ag_news], reviews: [data=imdb]}
        packaged: {news: [data=bbc_news], reviews: [data=imdb_packaged]}
    tune_by: metrics.validation.loss
    cells:
      - {id: pretrain, overrides: [experiment=lecture_pretrain, $news], row: false}
      - {id: lora, label: "LoRA, rank {peft.rank}", from: pretrain, grid: {peft.rank: [1, 2]},
         overrides: [experiment=lecture_lora, $reviews], tune: {optim.lr: [0.1, 0.3, 1]}}

The first option of a setting is the default. ``$news`` stands for that option's overrides. ``from`` names the cell
whose run of the same seed a cell's runs start from (``backbone.from_run``). A ``grid`` makes one cell a combination. A
``tune`` grid, or a ``search``, makes no cells: all its combinations run with the first seed, and the best on validation
runs with the other seeds. ``overrides``, ``grid``, ``tune`` and ``search`` above the cells are for all cells; a cell's
own grid, tune or search replaces them, and an empty one (``tune: {}``) means none.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import Field

from peftlab.errors import ConfigError, listed
from peftlab.fields import NAME_PATTERN, FiniteFloat, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from peftlab.metric_names import MetricName
from peftlab.objectives.base import TASK_MEANS, figure_called, objectives
from peftlab.report.columns import Column
from peftlab.report.key_names import short_names

_PLACE = re.compile(r"\{([\w.]+)\}")
"""Where a label has the value of a key."""
Text = Annotated[str, Field(min_length=1)]
Values = dict[str, Annotated[list[Any], Field(min_length=1)]]
"""Key of a run's config → the values it takes."""


@dataclass(kw_only=True)
class Range:
    """The values one key may take in a search: from ``low`` to ``high``, or one of ``choices``."""

    low: FiniteFloat | None = None
    """The lowest value."""
    high: FiniteFloat | None = None
    """The highest."""
    log: bool = False
    """Whether it is drawn evenly on a logarithmic scale."""
    step: PositiveFloat | None = None
    """Between the values that are drawn; null: any."""
    whole: bool = False
    """Whether only whole numbers are drawn."""
    choices: list[Any] = field(default_factory=list)
    """The values, instead of low and high."""

    def __post_init__(self) -> None:
        if self.choices:
            if self.low is not None or self.high is not None or self.log or self.step or self.whole:
                raise ValueError("give either choices, or low and high, as {low: 1e-5, high: 1e-2, log: true}.")
            self.choices = [plain_number(value) for value in self.choices]
            if len({override_value(value) for value in self.choices}) < len(self.choices):
                raise ValueError("two choices are the same.")
            return
        if self.low is None or self.high is None:
            raise ValueError("give low and high, or choices, as {low: 1e-5, high: 1e-2, log: true}.")
        if not self.low < self.high:
            raise ValueError(f"low must be less than high, got {self.low:g} and {self.high:g}.")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("a logarithmic scale needs low > 0 and no step.")
        if self.whole and any(value is not None and value != int(value) for value in (self.low, self.high, self.step)):
            raise ValueError("whole: true needs whole numbers.")

    def corners(self) -> list[Any]:
        """The ends of the range and a value between them, or all choices: what is checked before anything runs."""
        if self.choices:
            return list(self.choices)
        low, high = self.low or 0.0, self.high or 0.0
        if self.whole:
            return [int(low), int(high)]
        # In between, since a key for whole numbers may allow 2.0 and 8.0, and then 3.5 would fail in the night.
        between = low + (self.step if self.step is not None else (high - low) * 0.375)
        return [low, *([between] if low < between < high else []), high]


@dataclass(kw_only=True)
class Search:
    """A search with Optuna: each trial runs with the first seed, the best trial's values with the other seeds."""

    sampler: Literal["tpe", "random"] = "tpe"
    """What draws: tpe, by what earlier trials gave (Bergstra et al. 2011), or at random."""
    trials: PositiveInt
    """How many sets of values are tried."""
    pruner: Literal["successive_halving", "median", "none"] = "none"
    """What stops a trial early, by its validation after each epoch."""
    direction: Literal["maximize", "minimize"] | None = None
    """By default as the metric says: minimize a loss or an error, maximize the others."""
    metric: str | None = None
    """A column of metrics.csv; null: the validation figure that selects for the run's objective. An epoch's value while
    a trial runs, the chosen epoch's value at its end."""
    seed: NonNegativeInt = 0
    """Seeds the sampler; run one trial at a time, a search draws the same trials again."""
    space: dict[str, Range]
    """Key of a run's config → the values it may take."""

    def __post_init__(self) -> None:
        names = dict.fromkeys(name for one in objectives().values() for name in reversed(one.every_epoch()))
        names |= dict.fromkeys(figure.name for figure in TASK_MEANS.values())
        allowed = [MetricName(split, name).in_history for split in ("validation", "train") for name in names]
        if self.metric is not None and self.metric not in allowed:
            raise ValueError(f"metric '{self.metric}' must be one of {', '.join(allowed)}: never tuned on test data.")
        if not self.space:
            raise ValueError(
                "space is empty: name at least one key, as space: {optim.lr: {low: 1e-5, high: 1e-2, log: true}}."
            )
        if self.metric is None:  # known with the run's objective
            return
        better = "minimize" if lower_is_better(self.metric) else "maximize"
        if self.direction not in (None, better):
            raise ValueError(f"direction: {self.direction} contradicts metric '{self.metric}', which is to {better}.")


@dataclass(kw_only=True)
class Arm:
    """One arm of the experiment, ``cells`` in the file: a configuration, whose runs differ in their seed only."""

    id: Annotated[str, Field(pattern=NAME_PATTERN, max_length=80)]
    """Its name in this file and in sweep.json; a grid adds its values."""
    label: str = ""
    """What the table calls it; ``{key}`` stands for the value of a key of ``grid`` or ``overrides``; values of the grid
    that it has no place for are added to it."""
    group: str = ""
    """The block of the table that it stands in."""
    overrides: list[str] = field(default_factory=list)
    """What its runs have beside the overrides above the cells, as on the command line: ``peft=lora optim.lr=1e-3``."""
    start: str | None = None
    """``from`` in the file: the cell to start from, whose run of the same seed is ``backbone.from_run``."""
    grid: Values | None = None
    """One cell for each combination."""
    tune: Values | None = None
    """Values of which the best on validation is chosen."""
    search: dict[Literal["optuna"], Search] | None = None
    """The same over ranges."""
    row: bool = True
    """Whether it is a row of the table."""
    curve: bool = False
    """Whether its learning curve is drawn."""

    @property
    def title(self) -> str:
        """What people call it."""
        return self.label or self.id

    def expanded(self) -> Iterator[Arm]:
        """One cell for each combination of the grid; itself without one."""
        grid = self.grid or {}
        unsaid = [
            key for key, values in grid.items() if self.label and len(values) > 1 and f"{{{key}}}" not in self.label
        ]
        short = short_names(unsaid)
        for chosen in combinations(grid):
            more = assignments(chosen)
            label = self._filled({**self._own_values(), **{key: str(value) for key, value in chosen.items()}})
            label = ", ".join([label, *assignments({short[key]: chosen[key] for key in unsaid})])
            suffix = "".join(f"_{value}" for value in chosen.values())
            yield replace(self, id=f"{self.id}{suffix}", label=label, overrides=[*self.overrides, *more], grid=None)

    def _filled(self, values: Mapping[str, str]) -> str:
        """The label, with ``values`` in their places.

        Raises:
            ConfigError: naming a place for a dotted key that is not there; other braces may be anybody's, as TeX's.
        """

        def value(place: re.Match[str]) -> str:
            if place[1] not in values and "." in place[1]:
                raise ConfigError(
                    f"the label of cell '{self.id}' has a place for {place[1]}, which is no key of its grid or its "
                    f"overrides. They have {listed(values)}."
                )
            return values.get(place[1], place[0])

        return _PLACE.sub(value, self.label)

    def _own_values(self) -> dict[str, str]:
        """Key → value of the overrides, as typed."""
        words = (word.partition("=") for word in self.overrides)
        return {key.lstrip("+"): value for key, given, value in words if given}

    def candidates(self) -> list[dict[str, Any]]:
        """The combinations of the tune grid, in their order; none without one."""
        if not self.tune:
            return []
        return list(combinations({key: [plain_number(value) for value in given] for key, given in self.tune.items()}))

    def optuna(self) -> Search | None:
        """The search, if there is one."""
        return (self.search or {}).get("optuna")


@dataclass(kw_only=True)
class Expected:
    """A figure that somebody else gave for a cell, and how near to it ours must be."""

    cell: str
    """The cell's id."""
    column: str
    """The column's value."""
    value: FiniteFloat
    """What they gave."""
    tolerance: NonNegativeFloat
    """How far our mean may be from it."""
    source: Text
    """Who gives it, and where."""


@dataclass(kw_only=True)
class Published:
    """A figure that somebody else gave for a cell, only shown beside ours."""

    cell: str
    """The cell's id."""
    column: str
    """The column's value."""
    value: FiniteFloat
    """What they gave."""
    source: Text
    """Who gives it, and where."""
    provenance: Literal["read", "memory"]
    """Whether the source was read for this file, or the figure is from memory."""


@dataclass(kw_only=True)
class Sweep:
    """A declared table."""

    name: Annotated[str, Field(pattern=NAME_PATTERN, max_length=120)]
    """The folder of its runs, ``<output_dir>/<name>``."""
    title: str = ""
    """Stands above the table; empty: the name."""
    source: str = ""
    """Paper or lecture that the table is of."""
    command: str = ""
    """How it is called, for readers of the file."""
    cost: str = ""
    """What it costs, for readers; ``peftlab check FILE`` reckons from records where there are some."""
    selection: str = ""
    """How each run's weights are chosen, on validation only: stands under the table."""
    notes: str = ""
    """Printed under the table."""
    settings: dict[str, dict[str, dict[str, list[str]]]] = field(default_factory=dict)
    """Setting → option → word → overrides: ``$word`` among overrides stands for those of the chosen option, which
    ``peftlab sweep FILE setting=option`` names; the first is the default."""
    overrides: list[str] = field(default_factory=list)
    """For all cells; so are the next three, for cells that have none of their own."""
    grid: Values = field(default_factory=dict)
    """One cell for each combination."""
    tune: Values = field(default_factory=dict)
    """All combinations run with the first seed, the best on validation with the others."""
    search: dict[Literal["optuna"], Search] = field(default_factory=dict)
    """The same over ranges, which Optuna draws from."""
    tune_by: str | None = None
    """Where the value that ``tune`` chooses by stands in a record; a loss or an error is better when lower. null: the
    validation figure that selects for each run's objective."""
    seeds: list[NonNegativeInt]
    """A run of each cell for each; the table has mean and standard deviation over them."""
    metric: str = ""
    """Column value that the figures show; empty: the first column's."""
    baseline: str | None = None
    """Cell that the report compares the others with."""
    cells: list[Arm]
    """The arms, with their grids expanded."""
    columns: list[Column] = field(default_factory=list)
    """Of the table; none: what selects for the runs' objective on test, trainable parameters, seconds of training."""
    expected: list[Expected] = field(default_factory=list)
    """Figures that others gave, and how near ours must be: a test of the table."""
    published: list[Published] = field(default_factory=list)
    """Figures that others gave, shown beside ours."""

    def __post_init__(self) -> None:
        self.title = self.title or self.name
        self.metric = self.metric or next((column.value for column in self.columns), "")

    def arm(self, arm_id: str) -> Arm:
        """The cell called ``arm_id``."""
        return next(arm for arm in self.cells if arm.id == arm_id)

    def chooses(self) -> bool:
        """Whether any row's values are chosen by ``tune`` or ``search``."""
        return any(arm.tune or arm.search for arm in self.cells)


def lower_is_better(path: str) -> bool:
    """Whether less is better of the figure at ``path`` (``metrics.validation.loss``, ``validation/loss``)."""
    name = MetricName.from_record(path) or MetricName.from_history(path)
    figure = figure_called((name.figure if name else path).rpartition(".")[2])
    return figure is not None and figure.better == "min"


def combinations(values: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
    """Every combination of the values, the last key's changing fastest; one empty combination of nothing."""
    for chosen in itertools.product(*values.values()):
        yield dict(zip(values, chosen, strict=True))


def plain_number(value: Any) -> Any:
    """``value``; a number where it is the text of one, as YAML reads ``5e-4`` (without a point) as text."""
    if not isinstance(value, str):
        return value
    try:
        number = float(value)
    except ValueError:
        return value
    return number if math.isfinite(number) else value


def override_value(value: Any) -> str:
    """``value`` as an override of Hydra's grammar says it: ``true``, ``null``, ``[query,value]``."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(override_value, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}: {override_value(one)}' for key, one in value.items())}}}"
    return repr(value) if isinstance(value, float) else str(value)


def key_of(override: str) -> str:
    """The key that an override is about: ``peft`` of ``+peft=lora``, ``peft@x=lora`` and ``~peft``."""
    return override.lstrip("+~").partition("=")[0].partition("@")[0]


def assignments(parameters: Mapping[str, Any]) -> list[str]:
    """``key=value`` for each of ``parameters``."""
    return [f"{key}={override_value(value)}" for key, value in parameters.items()]
