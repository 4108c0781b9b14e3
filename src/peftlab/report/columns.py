"""Columns of a table: where their values stand in a record, and how a cell is made of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from peftlab.errors import ConfigError, listed
from peftlab.metric_names import MetricName
from peftlab.objectives.recorded import FORMATS_BEFORE
from peftlab.report.number_text import (
    DIGITS,
    FORMATS,
    NOTHING,
    WITHOUT_DEVIATION,
    Form,
    common_digits,
    number_text,
)  # fmt: skip
from peftlab.report.table import Cell

LOWER_IS_BETTER = ("seconds", "hours", "bytes", "mib", "forgetting", "forgetting_with_adapter_off", "perplexity")
"""Last parts of paths, or their last words, whose values are better when they are lower; what of the metrics is, the
records say."""


def present_format(given: Any) -> Any:
    """The name that a format has today."""
    return FORMATS_BEFORE.get(given, given) if isinstance(given, str) else given


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a report, or of a sweep's table."""

    title: str
    """At the head of the column."""
    value: str
    """Where the value stands in a record: ``metrics.test.loss``."""
    format: Annotated[Form, BeforeValidator(present_format)] = "score"
    """How numbers are written: score, percent (of a share), difference (with a sign), count, seconds, number; text in
    reports alone."""
    digits: Annotated[int, Field(ge=0, le=10)] | None = None
    """How many digits stand behind the point; null: as many as are usual for the format. Not of counts and texts."""
    deviation: bool = True
    """Whether the mean of several runs has their standard deviation beside it; counts and texts have none."""

    @property
    def head(self) -> str:
        """What stands at the head of the column where its cells are written out."""
        return f"{self.title} (%)" if self.format == "percent" and "%" not in self.title else self.title

    @property
    def scale(self) -> int:
        """What a value is multiplied by where it is written out."""
        return 100 if self.format == "percent" else 1

    @property
    def places(self) -> int:
        """Digits behind the point of a result."""
        return DIGITS.get(self.format, DIGITS["score"]) if self.digits is None else self.digits

    @property
    def deviates(self) -> bool:
        """Whether its cells have a deviation, where there are several runs."""
        return self.deviation and self.format not in WITHOUT_DEVIATION

    def errors_in_words(self, errors: Sequence[float]) -> str:
        """Errors or deviations of the column's values, in its own form: the lowest, and the highest if it is another.

        A digit more than the column has, where it would show zeros alone.
        """
        places = self.places
        while places < 6 and min(errors) and not float(f"{self.scale * min(errors):.{places}f}"):
            places += 1
        low, high = (f"{self.scale * one:.{places}f}" for one in (min(errors), max(errors)))
        unit = " percentage points" if self.format == "percent" else ""
        return f"{low if low == high else f'{low} to {high}'}{unit}"

    def with_digits_of(self, cells: Iterable[Sequence[float]]) -> Column:
        """The column as ``cells``, the values of each, want it: with one number of digits for all of them."""
        if self.format != "number" or self.digits is not None:
            return self
        return replace(self, digits=common_digits(cells, deviation=self.deviation))

    def plain(self) -> dict[str, Any]:
        """As files of data hold it."""
        found: dict[str, Any] = {"title": self.title, "value": self.value, "format": self.format}
        found |= {} if self.digits is None else {"digits": self.digits}
        return found if self.deviation else found | {"deviation": False}

    def lower_is_better(self, directions: Mapping[str, str]) -> bool:
        """Whether the lowest value is the best one; ``directions`` of figures are what the records say of them."""
        last = self.value.rpartition(".")[2]
        if MetricName.from_record(self.value) is not None and last in directions:
            return directions[last] == "min"
        return (
            last in LOWER_IS_BETTER or last.rpartition("_")[2] in LOWER_IS_BETTER or self.value.startswith("parameters")
        )


def column_of(path: str) -> Column:
    """A column for ``path``, titled and formatted by what its name says."""
    title, form = _title_and_format(path)
    return Column(title=title, value=path, format=form)


def _title_and_format(path: str) -> tuple[str, Form]:
    first, _, rest = path.partition(".")
    last = path.rpartition(".")[2]
    words = last.replace("_", " ")
    if (metric := MetricName.from_record(path)) is not None:
        return metric.title, "score"
    if first == "parameters" or last in ("rows", "bytes") or path.startswith("data.rows"):
        titles = {"trainable": "trainable parameters", "trainable_without_head": "trainable, without the head"}
        return titles.get(last, words), "count"
    if path in _COSTS:
        return _COSTS[path], "number"
    if last.endswith("seconds"):
        return words, "seconds"
    if first == "probe":
        if rest == "forgetting":
            return "forgetting of general text, nats a token", "difference"
        return f"{rest.replace('.', ' ').replace('_', ' ')} on general text", "count" if last == "tokens" else "score"
    if first == "forgetting":
        return words, "score" if last in ("before", "after") else "difference"
    return (rest or path, "text") if first == "config" else (path, "number")


_COSTS = {
    "memory.peak_mib": "peak memory, MiB",
    "memory.peak_gpu_mib": "peak GPU memory, MiB",
    "timing.gpu_hours": "GPU-hours of training",
    "timing.cpu_hours": "CPU core-hours of training",
    "timing.latency_seconds": "seconds a text",
    "timing.latency_merged_seconds": "seconds a text, merged",
}
"""Titles of columns of what a run took; their numbers span too much for a fixed number of digits."""
TRAINABLE, TRAINABLE_WITHOUT_HEAD = "parameters.trainable", "parameters.trainable_without_head"
STANDARD = (TRAINABLE, TRAINABLE_WITHOUT_HEAD, "timing.train_seconds", "memory.peak_mib")


def columns_of(given: str | None, metric: str, of_sweep: Sequence[Column]) -> list[Column]:
    """The columns: those of ``given`` (paths with commas), else of the sweep, else the standard ones.

    The metric is always among them, and first if it was not asked for.

    Raises:
        ConfigError: if ``given`` names none; for a format that a sweep file gives and that is not known.
    """
    if given is not None:
        columns = [column_of(path) for path in (part.strip() for part in given.split(",")) if path]
        if not columns:
            raise ConfigError(
                "--columns is empty. Give places in record.json with commas between, for example "
                f"--columns {STANDARD[0]},{STANDARD[2]}; or leave it out."
            )
    elif of_sweep:
        columns = list(of_sweep)
    else:
        columns = [column_of(path) for path in STANDARD]
    for column in columns:
        if column.format not in FORMATS:
            raise ConfigError(f"column '{column.title}': unknown format '{column.format}'. Known: {listed(FORMATS)}.")
        require_form_means_something(column)
    if not any(column.value == metric for column in columns):
        columns.insert(0, column_of(metric))
    return columns


def require_form_means_something(column: Column) -> None:
    """Raise ConfigError for digits and deviations of a count or a text, which have none."""
    if column.format not in WITHOUT_DEVIATION:
        return
    of = listed([form for form in FORMATS if form not in WITHOUT_DEVIATION])
    if column.digits is not None:
        raise ConfigError(
            f"column '{column.title}': digits {column.digits}, but its format is '{column.format}', which has none "
            f"behind a point. Leave digits out, or choose another format: {of}."
        )
    if not column.deviation:
        raise ConfigError(
            f"column '{column.title}': deviation false, but its format is '{column.format}', which has none. "
            f"Leave deviation out, or choose another format: {of}."
        )


def cell_of(values: Sequence[float], column: Column, *, complete: int, expected: int, unit: str = "seeds") -> Cell:
    """The cell of some runs' values: mean ± standard deviation, or a count; – if there are none.

    Args:
        values: the numbers of the runs that have one.
        column: which it is of; not one of texts.
        complete: how many values there are where none is missing; with fewer, the cell says how many there are.
        expected: of how many it then says so.
        unit: what is counted.
    """
    if not values:
        return Cell(NOTHING)
    lacking = "" if len(values) == complete else f" ({len(values)}/{expected} {unit})"
    finite = [value for value in values if isfinite(value)]
    text = number_text(values, column.format, column.digits, deviation=column.deviation)
    return Cell(f"{text}{lacking}", sum(finite) / len(finite) if finite else None)


def mean_text(mean: float, column: Column) -> str:
    """``mean`` as a cell of ``column`` shows it."""
    return number_text([mean], column.format, column.digits)


def cell_of_texts(texts: Sequence[Any]) -> Cell:
    """The cell of some runs' texts: each that there is, once."""
    shown = dict.fromkeys("null" if text is None else str(text) for text in texts)
    return Cell(" | ".join(shown) or NOTHING)
