"""One run as a list has it: config, figures, state. Imports no torch.

Ten thousand records repeat each other: the same identity, the same groups of configs, to the byte. Each such part is
read once and is one object in all runs that have it. Figures, which differ, are read when somebody asks for them.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from itertools import chain
from typing import Any, TypedDict

import msgspec

from peftlab.errors import PeftlabError, RunError
from peftlab.metric_names import RECORD_PART, SPLITS, MetricName, TrainLossOfRow, record_part
from peftlab.objectives.recorded import FIELD as OBJECTIVE
from peftlab.objectives.recorded import objective_facts
from peftlab.reading import parse_json_fast
from peftlab.records.divergence import STATUS, diverged
from peftlab.records.folder import RecordHead, RunFolder, read_config_values
from peftlab.records.history import epochs_in
from peftlab.records.identity_recorded import recorded_rules
from peftlab.records.identity_rules import FIELD as IDENTITY
from peftlab.records.identity_rules import Rules
from peftlab.report.forks import cpus, map_in_forks
from peftlab.report.records_config import DATA_HASH, HASH_LETTERS, code_keys, flat
from peftlab.training.places import ends_epoch

MANY = 1_000
"""From so many runs on, starting processes to read them takes less time than it saves."""
_FIGURES = ("parameters", "timing", "memory", "forgetting", "probe", "selection")
"""Parts of a record with figures, beside its metrics."""
_once = lru_cache(maxsize=10_000)
"""Keeps what was made of the parts that records repeat."""


class WantedOfHistory(TrainLossOfRow, total=False):
    """What is read of each row of a history."""

    of_epoch: Any


class WantedOfData(TypedDict, total=False):
    """What is read of a record's data."""

    hash: Any


class Wanted(RecordHead, total=False):
    """What is read of a record; what is ``Raw`` stays JSON until :func:`_of_record` has looked whether it is known."""

    name: Any
    key: Any
    config: dict[str, msgspec.Raw]
    identity: msgspec.Raw
    data: WantedOfData | None
    objective: msgspec.Raw
    history: list[WantedOfHistory]
    ended_at: Any
    error: Any
    metrics: dict[str, msgspec.Raw] | None
    parameters: msgspec.Raw
    timing: msgspec.Raw
    memory: msgspec.Raw
    forgetting: msgspec.Raw
    probe: msgspec.Raw
    selection: msgspec.Raw


@dataclass(frozen=True)
class Listed:
    """One run."""

    folder: str
    name: str
    key: str
    status: str
    """``finished``, ``diverged``, ``failed``, ``interrupted``; without a record ``running`` or ``unfinished``; or
    ``unreadable``."""
    fields: tuple[Mapping[str, Any], ...] = ()
    """Its config, field by field: dotted key → value, a group in one mapping, which other runs may share."""
    rules: Rules | None = None
    """Which of its keys decide the numbers, as the record says; None: there is no record."""
    figures: Mapping[str, bytes] = field(default_factory=dict)
    """Part of the record, as ``timing`` or ``metrics.test`` → JSON of the mapping that it is."""
    selects: str = ""
    """The figure that selects."""
    better: str = "max"
    """Which value of it is better."""
    epochs: int = 0
    """Whole ones that it has behind it."""
    ended_at: str = ""
    """In UTC, as ISO 8601 has it."""
    error: str = ""

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """Dotted key → value, the hash of its data as ``data.hash``; bookkeeping included."""
        return dict(chain.from_iterable(part.items() for part in self.fields))

    @cached_property
    def values(self) -> Mapping[str, Any]:
        """Place in the record → number or text: ``timing.train_seconds``; a metric by its name in a history."""
        found: dict[str, Any] = {}
        for split in SPLITS:
            _add_leaves(found, self._part(record_part(split)), _in_history, split)
        for part in _FIGURES:
            _add_leaves(found, self._part(part), _in_record, part)
        return found

    def figure(self, split: str) -> float | None:
        """The selecting figure on ``split``."""
        found = self._part(record_part(split)).get(self.selects)
        return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None

    def _part(self, name: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = parse_json_fast(self.figures.get(name, b"{}"))
        return found


def read_listed(folders: Sequence[RunFolder]) -> list[Listed]:
    """Every run of ``folders``, whatever has become of it, in order."""
    if cpus() == 1 or len(folders) < MANY:
        return _read_some(folders)
    size = -(-len(folders) // (4 * cpus()))
    parts = [folders[begin : begin + size] for begin in range(0, len(folders), size)]
    return list(chain.from_iterable(map_in_forks(_read_some, parts)))


def _read_some(folders: Sequence[RunFolder]) -> list[Listed]:
    return [_read(folder) for folder in folders]


def _read(folder: RunFolder) -> Listed:
    try:
        record = folder.read_record(among_many=True, parts=Wanted)
        return _without_record(folder) if record is None else _of_record(str(folder.path), record)
    except (PeftlabError, KeyError, TypeError, AttributeError, ValueError, OSError) as error:
        reason = f"its record is damaged: no {error}" if isinstance(error, KeyError) else str(error)
        return Listed(str(folder.path), folder.path.parent.name, folder.key, "unreadable", error=reason)


def _without_record(folder: RunFolder) -> Listed:
    config: dict[str, Any] = {}
    with contextlib.suppress(RunError):
        config = flat(read_config_values(folder))
    fields = (config,) if config else ()
    holder = folder.held_by()
    status, error = ("unfinished", "") if holder is None else ("running", f"process {holder}")
    name = str(config.get("name", folder.path.parent.name))
    return Listed(str(folder.path), name, folder.key, status, fields, epochs=epochs_in(folder.metrics), error=error)


def _of_record(path: str, record: dict[str, Any]) -> Listed:
    fields = [_flat_field(name, _written(value)) for name, value in record["config"].items()]
    if IDENTITY in record:
        rules, code = _of_identity(_written(record[IDENTITY]))
        fields.append(code)
    else:
        rules = recorded_rules({"config": {name: _read_part(value) for name, value in record["config"].items()}})
    if known := (record.get("data") or {}).get("hash"):
        fields.append(_flat_hash(str(known)[:HASH_LETTERS]))
    selects, better = _of_objective(_written(record.get(OBJECTIVE)))
    status = record["status"]
    return Listed(
        folder=path,
        name=sys.intern(record["name"]),
        key=record["key"],
        status=STATUS if status == "finished" and diverged(record) else status,
        fields=tuple(fields),
        rules=rules,
        figures=dict(_figures(record)),
        selects=selects,
        better=better,
        epochs=sum(map(ends_epoch, record.get("history", ()))),
        ended_at=str(record.get("ended_at", "")),
        error=str(record.get("error", "")),
    )


def _written(value: Any) -> bytes:
    """The JSON of a part of a record, whichever reader has read it."""
    return bytes(value) if isinstance(value, msgspec.Raw) else json.dumps(value).encode()


def _read_part(value: Any) -> Any:
    return parse_json_fast(_written(value))


@_once
def _of_identity(written: bytes) -> tuple[Rules, Mapping[str, str]]:
    said = {IDENTITY: parse_json_fast(written)}
    return recorded_rules(said), code_keys(said)


@_once
def _of_objective(written: bytes) -> tuple[str, str]:
    """Which figure selects, and which value of it is better."""
    said = objective_facts({OBJECTIVE: parse_json_fast(written)})
    return said["selects"], said["metrics"][said["selects"]]


@_once
def _flat_field(name: str, written: bytes) -> Mapping[str, Any]:
    return flat({name: parse_json_fast(written)})


@_once
def _flat_hash(known: str) -> Mapping[str, str]:
    return {DATA_HASH: known}


def _figures(record: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
    metrics = record.get(RECORD_PART) or {}
    if not isinstance(metrics, dict):
        raise TypeError(f"its record is damaged: {RECORD_PART} is no mapping")
    parts = [(record_part(split), metrics.get(split)) for split in SPLITS]
    parts += [(part, record.get(part)) for part in _FIGURES]
    for name, value in parts:
        if value is None:
            continue
        written = _written(value)
        if written.startswith(b"{"):
            yield name, written
        elif written != b"null":
            raise TypeError(f"its record is damaged: {name} is no mapping")


def _add_leaves(
    found: dict[str, Any], node: Mapping[str, Any], named: Callable[[str, str], str], part: str, prefix: str = ""
) -> None:
    for name, value in node.items():
        kind = type(value)  # as JSON has them: there are no other kinds
        if kind is dict:
            _add_leaves(found, value, named, part, f"{prefix}{name}.")
        elif kind is float or kind is int or kind is str:
            found[named(part, prefix + name)] = value


@cache
def _in_history(split: str, name: str) -> str:
    return sys.intern(MetricName(split, name).in_history)


@cache
def _in_record(part: str, name: str) -> str:
    return sys.intern(f"{part}.{name}")
