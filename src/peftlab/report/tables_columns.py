"""Columns of a table: where their values stand, and how they are printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from peftlab.errors import ConfigError, listed
from peftlab.objectives.recorded import FORMATS_BEFORE
from peftlab.report.groups import Group
from peftlab.report.statistics import summarise

FORMATS = ("score", "difference", "count", "seconds", "number", "text")
LOWER_IS_BETTER = ("seconds", "bytes", "mib", "forgetting", "forgetting_with_adapter_off", "perplexity")
"""Last parts of paths, or their last words, whose values are better when they are lower; what of the metrics is, the
records say."""


@dataclass(frozen=True)
class Column:
    """A column."""

    title: str
    value: str
    """Where the value stands in a record: ``metrics.test.loss``."""
    format: str

    def lower_is_better(self, directions: Mapping[str, str]) -> bool:
        """Whether the lowest value is the best one; ``directions`` of figures are what the records say of them."""
        last = self.value.rpartition(".")[2]
        if self.value.startswith("metrics.") and last in directions:
            return directions[last] == "min"
        return (
            last in LOWER_IS_BETTER or last.rpartition("_")[2] in LOWER_IS_BETTER or self.value.startswith("parameters")
        )


def column_of(path: str) -> Column:
    """A column for ``path``, titled and formatted by what its name says."""
    first, _, rest = path.partition(".")
    last = path.rpartition(".")[2]
    if first == "metrics":
        return Column(rest.replace(".", " ").replace("_", " "), path, "score")
    if first == "parameters" or last in ("rows", "bytes") or path.startswith("data.rows"):
        titles = {"trainable": "trainable parameters", "trainable_without_head": "trainable, without the head"}
        return Column(titles.get(last, last.replace("_", " ")), path, "count")
    if last.endswith("seconds"):
        return Column(last.replace("_", " "), path, "seconds")
    if first == "forgetting":
        return Column(last.replace("_", " "), path, "score" if last in ("before", "after") else "difference")
    if path == "memory.peak_mib":
        return Column("peak memory, MiB", path, "number")
    return Column(rest or path if first == "config" else path, path, "text" if first == "config" else "number")


STANDARD = ("parameters.trainable", "parameters.trainable_without_head", "timing.train_seconds", "memory.peak_mib")


def columns_of(given: str | None, metric: str, of_sweep: Sequence[dict[str, str]]) -> list[Column]:
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
        columns = [
            Column(column["title"], column["value"], FORMATS_BEFORE.get(column["format"], column["format"]))
            for column in of_sweep
        ]
    else:
        columns = [column_of(path) for path in STANDARD]
    for column in columns:
        if column.format not in FORMATS:
            raise ConfigError(f"column '{column.title}': unknown format '{column.format}'. Known: {listed(FORMATS)}.")
    if not any(column.value == metric for column in columns):
        columns.insert(0, column_of(metric))
    return columns


def cell_text(group: Group, column: Column) -> str:
    """What ``group`` has in ``column``: mean ± standard deviation, a count, a text; – if nothing."""
    if column.format == "text":
        texts = dict.fromkeys(str(run.values.get(column.value)) for run in group.runs)
        return " | ".join("null" if text == "None" else text for text in texts) or "–"
    values = group.values(column.value)
    if not values:
        return "–"
    text = _number_text(values, column.format)
    # What is the same for all seeds, or a cost, says so only where it lacks more than the column n says.
    complete = group.expected if column.format in ("score", "difference") else len(group.runs)
    return text if len(values) == complete else f"{text} ({seeds_text(group, len(values))})"


def seeds_text(group: Group, n: int | None = None) -> str:
    """``5 seeds``, or ``2/5 seeds`` where some are missing."""
    n = len(group.runs) if n is None else n
    seeds = {run.seed for run in group.runs}
    if len(seeds) < len(group.runs):  # grouped by less than the whole config
        return f"{n}/{group.expected} runs" if n < group.expected else f"{n} runs"
    if n < group.expected:
        return f"{n}/{group.expected} seeds"
    return "1 seed" if n == 1 else f"{n} seeds"


def _number_text(values: Sequence[float], form: str) -> str:
    lost = sum(not isfinite(value) for value in values)
    if lost:
        return "not finite" if lost == len(values) else f"not finite in {lost} of {len(values)}"
    if form == "count":
        low, high = round(min(values)), round(max(values))
        return f"{low:,}" if low == high else f"{low:,} … {high:,}"
    if form == "difference" and not any(values):
        return "0 (exactly)"
    found = summarise(values)
    assert found.mean is not None
    if form in ("score", "difference"):
        text = fixed(found.mean, sign=form == "difference")
    else:
        text = f"{found.mean:,.1f}" if form == "seconds" else plain_number(found.mean)
    if form in ("seconds", "number") or found.std is None:
        return text
    return f"{text} ± {found.std:.4f}"


def fixed(value: float, *, sign: bool = False) -> str:
    """Four decimals, with + or - if wanted; what rounds to zero has neither."""
    text = format(value, "+.4f" if sign else ".4f")
    return "0.0000" if text in ("-0.0000", "+0.0000") else text


def plain_number(value: float) -> str:
    """Four significant digits, thousands with commas, no exponent for everyday sizes."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def json_number(value: Any) -> Any:
    """``value``, or its name as text where JSON has no such number."""
    return value if not isinstance(value, float) or isfinite(value) else str(value)
