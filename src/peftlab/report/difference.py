"""In what two runs differ: config, data, circumstances, results; and of their test, text by text. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from peftlab.errors import RunError
from peftlab.metric_names import SPLITS, MetricName
from peftlab.objectives.recorded import objective_facts
from peftlab.records.folder import RunFolder, read_config_values
from peftlab.records.identity_recorded import recorded_rules
from peftlab.records.predictions import read_predictions
from peftlab.report.key_names import by_importance, shown
from peftlab.report.records_config import decides, flat
from peftlab.report.records_facts import facts_of

if TYPE_CHECKING:
    import pyarrow

NOT_THERE = "–"
RIGHT, ERROR, NATS = "share of right labels", "squared error", "loss of a text in nats"
_Z = 1.959963984540054
"""0.975 quantile of the standard normal distribution."""
_DATA = ("data", "data hash", "train kind", "test kind", "rows")
_CIRCUMSTANCES = ("hardware", "revision", "selection")
_NUMBERS = (
    "selection.epoch", "selection.step", "parameters.trainable", "timing.train_seconds",
    "timing.train_samples_per_second", "timing.evaluation_samples_per_second", "memory.peak_mib",
)  # fmt: skip


@dataclass(frozen=True)
class Line:
    """What one of the two has, and the other."""

    name: str
    first: str
    second: str
    difference: float | None = None
    """Second minus first, of numbers."""
    decides: bool = True
    """Whether it can change a run's numbers."""


@dataclass(frozen=True)
class ByText:
    """The test of two runs, text by text."""

    rows: int
    judged: str
    """What a text is judged by: :data:`RIGHT`, :data:`ERROR` or :data:`NATS`."""
    difference: float
    """Mean of second minus first."""
    low: float
    high: float
    """95 % interval of the difference, from the spread over texts (the sampling of the test rows, not of seeds)."""
    only_first: int | None = None
    only_second: int | None = None
    """Texts that only one of the two labels rightly, of classifications."""
    p: float | None = None
    """Exact McNemar test (McNemar 1947): whether the two counts could come from equally good runs."""


@dataclass(frozen=True)
class Difference:
    """All of it."""

    folders: tuple[str, str]
    keys: tuple[str, str]
    statuses: tuple[str, str]
    config: tuple[Line, ...]
    data: tuple[Line, ...]
    circumstances: tuple[Line, ...]
    results: tuple[Line, ...]
    """All figures, those that are the same too."""
    notes: tuple[str, ...]
    by_text: ByText | None = None

    def plain(self) -> dict[str, Any]:
        """As plain containers."""
        return asdict(self)


def difference(first: RunFolder, second: RunFolder, *, rows: bool = False) -> Difference:
    """In what the two differ.

    Args:
        first: a run, finished or not.
        second: another.
        rows: compare their tests text by text.

    Raises:
        RunError: if a record cannot be read, or has no predictions of the same texts where ``rows`` asks for them.
    """
    folders = (first, second)
    records = [folder.read_record() for folder in folders]
    known = [record or {} for record in records]
    statuses = tuple(
        str(record["status"]) if record else ("running" if folder.held_by() else "unfinished")
        for folder, record in zip(folders, records, strict=True)
    )
    both = records[0] is not None and records[1] is not None
    return Difference(
        folders=(str(first.path), str(second.path)),
        keys=(str(known[0].get("key", first.key)), str(known[1].get("key", second.key))),
        statuses=(statuses[0], statuses[1]),
        config=tuple(_config(folders, known)),
        data=tuple(_facts(known, _DATA)) if both else (),
        circumstances=(*_circumstances(known),) if both else (),
        results=tuple(_results(known)),
        notes=tuple(_notes(known)) if both else (),
        by_text=_by_text(folders, known) if rows else None,
    )


def _config(folders: Sequence[RunFolder], records: Sequence[Mapping[str, Any]]) -> Iterator[Line]:
    configs = [
        flat(record["config"] if "config" in record else read_config_values(folder))
        for folder, record in zip(folders, records, strict=True)
    ]
    rules = next((recorded_rules(record) for record in records if record), None)
    keys = [
        key for key in dict.fromkeys([*configs[0], *configs[1]]) if _said(configs[0], key) != _said(configs[1], key)
    ]
    for key in by_importance(keys):
        matters = key == "seed" or rules is None or decides(key, rules)
        yield Line(key, _said(configs[0], key), _said(configs[1], key), decides=matters)


def _said(config: Mapping[str, Any], key: str) -> str:
    return shown(config[key]) if key in config else NOT_THERE


def _facts(records: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Iterator[Line]:
    facts = [facts_of(record) for record in records]
    for name in names:
        values = [of[name][:12] if name == "data hash" else of[name] for of in facts]
        if values[0] != values[1]:
            yield Line(name, values[0] or NOT_THERE, values[1] or NOT_THERE)


def _circumstances(records: Sequence[Mapping[str, Any]]) -> Iterator[Line]:
    yield from _facts(records, _CIRCUMSTANCES)
    if (processes := [str(record.get("processes", 1)) for record in records])[0] != processes[1]:
        yield Line("processes", processes[0], processes[1])
    if (tags := [", ".join(record.get("identity_tags") or []) for record in records])[0] != tags[1]:
        yield Line("computed by rules", tags[0] or NOT_THERE, tags[1] or NOT_THERE)
    versions = [record["versions"] for record in records]
    for package in dict.fromkeys([*versions[0], *versions[1]]):
        found = [str(of.get(package, NOT_THERE)) for of in versions]
        if found[0] != found[1]:
            yield Line(package, found[0], found[1])


def _results(records: Sequence[Mapping[str, Any]]) -> Iterator[Line]:
    selects = dict.fromkeys(objective_facts(record)["selects"] for record in records if record)
    for split in SPLITS[::-1]:
        figures = [(record.get("metrics") or {}).get(split) or {} for record in records]
        names = dict.fromkeys([*selects, *figures[0], *figures[1]])
        for name in names:
            values = [of.get(name) for of in figures]
            if any(_is_number(value) for value in values):
                yield _numbers(MetricName(split, name).title, values[0], values[1])
    for path in _NUMBERS:
        part, _, name = path.partition(".")
        values = [(record.get(part) or {}).get(name) for record in records]
        if path == "selection.epoch":  # people count them from 1
            values = [None if value is None else value + 1 for value in values]
        if any(_is_number(value) for value in values):
            yield _numbers(f"chosen {name}" if part == "selection" else name.replace("_", " "), values[0], values[1])


def _numbers(name: str, first: Any, second: Any) -> Line:
    both = _is_number(first) and _is_number(second)
    texts = [NOT_THERE if value is None else _text(value) for value in (first, second)]
    return Line(name, texts[0], texts[1], difference=second - first if both else None)


def _text(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else shown(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _notes(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    hashes = [((record.get("data") or {}).get("split_hashes") or {}).get("test") for record in records]
    if None not in hashes and hashes[0] != hashes[1]:
        yield "They were tested on different texts: the difference of their test figures says nothing."
    objectives = [objective_facts(record)["name"] for record in records]
    if objectives[0] != objectives[1]:
        yield f"They learn different things ({objectives[0]}, {objectives[1]}): their figures do not compare."
    if records[0].get("key") == records[1].get("key"):
        yield "They have the same key: the same config on the same data, made twice."


# -- text by text ------------------------------------------------------------------------------------------


def _by_text(folders: Sequence[RunFolder], records: Sequence[Mapping[str, Any]]) -> ByText:
    tables = [read_predictions(folder, record) for folder, record in zip(folders, records, strict=True)]
    if tables[0]["hash"].to_pylist() != tables[1]["hash"].to_pylist():
        raise RunError(
            "the two were tested on different texts, or on the same in another order: nothing can be compared text by "
            "text. Leave --rows out."
        )
    judged, scores = zip(*(_scores(table) for table in tables), strict=True)
    if judged[0] != judged[1]:
        raise RunError(f"one is judged by {judged[0]}, the other by {judged[1]}: leave --rows out.")
    first, second = scores
    low, mean, high = _interval([b - a for a, b in zip(first, second, strict=True)])
    if judged[0] != RIGHT:
        return ByText(len(first), judged[0], mean, low, high)
    only_first = sum(a > b for a, b in zip(first, second, strict=True))
    only_second = sum(b > a for a, b in zip(first, second, strict=True))
    return ByText(
        len(first), judged[0], mean, low, high, only_first, only_second, p=exact_mcnemar(only_first, only_second)
    )


def _scores(table: pyarrow.Table) -> tuple[str, list[float]]:
    """What each row is judged by, and its score."""
    columns = set(table.column_names)
    gold = table["gold"].to_pylist() if "gold" in columns else []
    if {"gold", "predicted"} <= columns:
        return RIGHT, [float(a == b) for a, b in zip(gold, table["predicted"].to_pylist(), strict=True)]
    if "value" in columns:
        return ERROR, [(a - b) ** 2 for a, b in zip(gold, table["value"].to_pylist(), strict=True)]
    if "nats" in columns:
        return NATS, table["nats"].to_pylist()
    raise RunError("the predictions say neither a label nor a value of each text: leave --rows out.")


def _interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """Lower end, mean and upper end of the 95 % interval of the mean, by the normal approximation."""
    count = len(differences)
    mean = math.fsum(differences) / count
    if count < 2:
        return -math.inf, mean, math.inf
    variance = math.fsum((value - mean) ** 2 for value in differences) / (count - 1)
    half = _Z * math.sqrt(variance / count)
    return mean - half, mean, mean + half


def exact_mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p of the two counts under a fair coin; in whole numbers up to the last division."""
    total, least = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(total, k) for k in range(least + 1))
    return float(min(1.0, 2 * tail / 2**total))
