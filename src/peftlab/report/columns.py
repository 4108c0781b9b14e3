"""Columns of a table: where their values stand in a record, and how a cell is made of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field

from peftlab.errors import ConfigError, listed
from peftlab.metric_names import MetricName
from peftlab.objectives.recorded import FORMATS_BEFORE
from peftlab.report.statistics import summarise
from peftlab.report.table import Cell

Form = Literal["score", "percent", "difference", "count", "seconds", "number", "text"]
FORMATS: tuple[str, ...] = get_args(Form)
NOTHING = "–"
"""In a cell without a value."""
TELLING: tuple[Form, ...] = ("score", "percent", "difference")
"""Formats of results, whose cells say what they lack; the others are of costs."""
WITHOUT_DEVIATION: tuple[Form, ...] = ("count", "text")
"""Formats whose cells have no deviation: they show the lowest and the highest count, or each text."""
DIGITS: dict[str, int] = {"score": 4, "percent": 2, "difference": 4, "seconds": 1}
"""Digits behind the point where a column says nothing else."""
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
    text = _number_text(values, column.format, column.digits, deviation=column.deviation)
    return Cell(f"{text}{lacking}", sum(finite) / len(finite) if finite else None)


def mean_text(mean: float, column: Column) -> str:
    """``mean`` as a cell of ``column`` shows it."""
    return _number_text([mean], column.format, column.digits)


def cell_of_texts(texts: Sequence[Any]) -> Cell:
    """The cell of some runs' texts: each that there is, once."""
    shown = dict.fromkeys("null" if text is None else str(text) for text in texts)
    return Cell(" | ".join(shown) or NOTHING)


def common_digits(cells: Iterable[Sequence[float]], *, deviation: bool = True) -> int | None:
    """How many digits behind the point all means of a column of numbers have; None if each had better have its own.

    The largest shows four digits that count, and the smallest two; zeros that end all of them, and all deviations, are
    left out. Where that would give the largest more than two digits beyond its four, numbers are too far apart for one
    form, and where all are below 0.0001, an exponent says more.

    Args:
        cells: the values of each cell; those without one, or with one that is not finite, have no say.
        deviation: whether the deviations of the cells are shown too.
    """
    summaries = [summarise(values) for values in cells]
    means = [one.finite_mean for one in summaries]
    sizes = [abs(mean) for mean in means if mean]
    if not sizes:
        return 0 if 0.0 in means else None
    of_largest = max(0, _digits_for(max(sizes), 4))
    digits = max(of_largest, _digits_for(min(sizes), 2))
    if max(sizes) < 1e-4 or digits > of_largest + 2:
        return None
    shown = [*sizes, *(one.std for one in summaries if deviation and one.std)]
    ends = (format(size, f".{digits}f").partition(".")[2] for size in shown)
    return max(len(end.rstrip("0")) for end in ends)


def _digits_for(size: float, counting: int) -> int:
    """Digits behind the point with which ``size``, above 0, has so many that count; negative before the point."""
    return counting - 1 - int(format(size, f".{counting - 1}e").partition("e")[2])


def single_text(value: float | None, form: Form, digits: int | None = None) -> str:
    """One run's value."""
    if value is None:
        return NOTHING
    if form == "percent":
        return fixed(100 * value, digits=DIGITS[form] if digits is None else digits)
    if digits is not None:
        return fixed(value, digits=digits)
    return fixed(value) if form == "score" else plain_number(value)


def _number_text(values: Sequence[float], form: Form, digits: int | None = None, *, deviation: bool = True) -> str:
    lost = sum(not isfinite(value) for value in values)
    if lost:
        return "not finite" if lost == len(values) else f"not finite in {lost} of {len(values)}"
    if form == "count":
        low, high = (with_minus(f"{round(value):,}") for value in (min(values), max(values)))
        return low if low == high else f"{low} … {high}"
    if form == "difference" and not any(values):
        return "0 (exactly)"
    found = summarise(values)
    assert found.mean is not None
    std = found.std if deviation else None
    places = DIGITS.get(form) if digits is None else digits
    if form in TELLING:
        assert places is not None
        scale = 100 if form == "percent" else 1
        text = fixed(scale * found.mean, sign=form == "difference", digits=places)
        return text if std is None else f"{text} ± {scale * std:.{places}f}"
    places = common_digits([values], deviation=deviation) if places is None else places
    if places is None:
        return plain_number(found.mean) if std is None else f"{plain_number(found.mean)} ± {plain_number(std)}"
    text = _with_commas(found.mean, places)
    return text if std is None else f"{text} ± {std:,.{places}f}"


def fixed(value: float, *, sign: bool = False, digits: int = 4) -> str:
    """So many decimals, with + or - if wanted; what rounds to zero has neither."""
    text = format(value, f"{'+' if sign else ''}.{digits}f")
    return with_minus(text) if any(digit in text for digit in "123456789") else text.lstrip("+-")


def _with_commas(value: float, digits: int) -> str:
    text = f"{value:,.{digits}f}"
    return with_minus(text) if any(digit in text for digit in "123456789") else text.lstrip("-")


def with_minus(number: str) -> str:
    """``number`` with a minus sign in the place of a hyphen in front."""
    return f"\N{MINUS SIGN}{number[1:]}" if number.startswith("-") else number


def plain_number(value: float) -> str:
    """Four significant digits, thousands with commas, no exponent for everyday sizes."""
    if abs(value) >= 1000:
        return with_minus(f"{value:,.0f}")
    return with_minus(f"{value:.4g}")
