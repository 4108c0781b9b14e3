"""In what two runs differ: config, data, circumstances, results; and of their test, text by text. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from peftlab.metric_names import SPLITS, MetricName
from peftlab.objectives.recorded import objective_facts
from peftlab.records.folder import RunFolder, read_config_values
from peftlab.records.identity_recorded import recorded_rules
from peftlab.report.by_text import ByText, by_text
from peftlab.report.key_names import by_importance, shown
from peftlab.report.records_config import code_keys, decides, flat
from peftlab.report.records_facts import facts_of

NOT_THERE = "–"
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
        by_text=by_text(folders, known) if rows else None,
    )


def _config(folders: Sequence[RunFolder], records: Sequence[Mapping[str, Any]]) -> Iterator[Line]:
    configs = [
        flat(record["config"] if "config" in record else read_config_values(folder)) | code_keys(record)
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
