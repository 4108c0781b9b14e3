"""Runs one by one, as a list of them and a comparison of two need them: config, figures, state. Imports no torch."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from typing import Any

from peftlab.errors import ConfigError, PeftlabError, RunError, counted, listed, nearest
from peftlab.metric_names import RECORD_PART, SPLITS, MetricName, TrainLossOfRow
from peftlab.objectives.recorded import objective_facts
from peftlab.records.divergence import STATUS, diverged
from peftlab.records.folder import RecordHead, RunFolder, read_config_values
from peftlab.records.history import epochs_in
from peftlab.records.identity_recorded import recorded_rules
from peftlab.records.identity_rules import Rules
from peftlab.report.forks import cpus, map_in_forks
from peftlab.report.key_names import by_importance, keep_where, short_names, shown, telling_keys
from peftlab.report.records_config import DATA_HASH, HASH_LETTERS, code_keys, decides, flat
from peftlab.training.places import ends_epoch

MANY = 1_000
"""From so many runs on, starting processes to read them takes less time than it saves."""
_PARTS = ("parameters", "timing", "memory", "forgetting", "probe", "selection")
"""What is kept of a record beside config and metrics."""


class WantedOfHistory(TrainLossOfRow, total=False):
    """What is read of each row of a history."""

    of_epoch: Any


class Wanted(RecordHead, total=False):
    """What is read of each of many records; their histories are most of what is passed over."""

    name: Any
    key: Any
    config: Any
    identity: Any
    data: Any
    objective: Any
    history: list[WantedOfHistory]
    ended_at: Any
    error: Any
    metrics: Any
    parameters: Any
    timing: Any
    memory: Any
    forgetting: Any
    probe: Any
    selection: Any


@dataclass(frozen=True, slots=True)
class Listed:
    """One run."""

    folder: str
    name: str
    key: str
    status: str
    """``finished``, ``diverged``, ``failed``, ``interrupted``; without a record ``running`` or ``unfinished``; or
    ``unreadable``."""
    config: dict[str, Any] = field(default_factory=dict)
    """Dotted key → value, the hash of its data as ``data.hash``; bookkeeping included."""
    rules: Rules | None = None
    """Which of its keys decide the numbers, as the record says; None: there is no record."""
    parts: dict[str, Any] = field(default_factory=dict)
    """What the record holds of figures, as it holds them."""
    selects: str = ""
    """The figure that selects."""
    better: str = "max"
    """Which value of it is better."""
    epochs: int = 0
    """Whole ones that it has behind it."""
    ended_at: str = ""
    """In UTC, as ISO 8601 has it."""
    error: str = ""

    @property
    def values(self) -> dict[str, Any]:
        """Place in the record → number or text: ``timing.train_seconds``; a metric by its name in a history."""
        found: dict[str, Any] = {}
        for split in SPLITS:
            _add_leaves(found, self._metrics(split), _in_history, split)
        for part in _PARTS:
            _add_leaves(found, self.parts.get(part) or {}, _in_record, part)
        return found

    def figure(self, split: str) -> float | None:
        """The selecting figure on ``split``."""
        found = self._metrics(split).get(self.selects)
        return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None

    def _metrics(self, split: str) -> Mapping[str, Any]:
        return (self.parts.get(RECORD_PART) or {}).get(split) or {}


def read_listed(folders: Sequence[RunFolder]) -> list[Listed]:
    """Every run of ``folders``, whatever has become of it, in order."""
    many = len(folders) >= MANY
    if cpus() == 1 or not many:
        return _read_some(folders, many)
    size = -(-len(folders) // (4 * cpus()))
    parts = [folders[begin : begin + size] for begin in range(0, len(folders), size)]
    return list(chain.from_iterable(map_in_forks(_read_some, parts, [many] * len(parts))))


def _read_some(folders: Sequence[RunFolder], many: bool) -> list[Listed]:
    return [_read(folder, many) for folder in folders]


def _read(folder: RunFolder, many: bool) -> Listed:
    path, name = str(folder.path), folder.path.parent.name
    try:
        record = folder.read_record(among_many=many, parts=Wanted)
        return _without_record(folder) if record is None else _of_record(path, record)
    except (PeftlabError, KeyError, TypeError, AttributeError, ValueError, OSError) as error:
        reason = f"its record is damaged: no {error}" if isinstance(error, KeyError) else str(error)
        return Listed(path, name, folder.key, "unreadable", error=reason)


def _without_record(folder: RunFolder) -> Listed:
    config: dict[str, Any] = {}
    with contextlib.suppress(RunError):
        config = flat(read_config_values(folder))
    holder = folder.held_by()
    status, error = ("unfinished", "") if holder is None else ("running", f"process {holder}")
    name = str(config.get("name", folder.path.parent.name))
    return Listed(str(folder.path), name, folder.key, status, config, epochs=epochs_in(folder.metrics), error=error)


def _of_record(path: str, record: dict[str, Any]) -> Listed:
    config, objective = flat(record["config"]) | code_keys(record), objective_facts(record)
    if known := (record.get("data") or {}).get("hash"):
        config[DATA_HASH] = sys.intern(str(known)[:HASH_LETTERS])
    status = record["status"]
    return Listed(
        folder=path,
        name=sys.intern(record["name"]),
        key=record["key"],
        status=STATUS if status == "finished" and diverged(record) else status,
        config=config,
        rules=recorded_rules(record),
        parts=_parts(record),
        selects=objective["selects"],
        better=objective["metrics"][objective["selects"]],
        epochs=sum(map(ends_epoch, record.get("history", ()))),
        ended_at=str(record.get("ended_at", "")),
        error=str(record.get("error", "")),
    )


def _parts(record: Mapping[str, Any]) -> dict[str, Any]:
    found = {part: record[part] for part in (RECORD_PART, *_PARTS) if record.get(part)}
    figures = found.get(RECORD_PART)
    inner = [(f"{RECORD_PART}.{split}", figures.get(split)) for split in SPLITS] if type(figures) is dict else []
    for name, part in (*found.items(), *inner):
        if part and type(part) is not dict:
            raise TypeError(f"its record is damaged: {name} is no mapping")
    return found


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


# -- what tells them apart --------------------------------------------------------------------------------


def told_apart(runs: Sequence[Listed]) -> list[dict[str, str]]:
    """Of each run, what its config says that those of others do not: ``{peft: lora, rank: 4, seed: 1}``."""
    known = [run for run in runs if run.config]
    rules = next((run.rules for run in known if run.rules is not None), None)
    kinds = defaultdict[str, set[tuple[type, Any]]](set)  # true, 1 and 1.0 are equal, and shown as three
    before: dict[str, Any] = {}
    for run in known:
        for key, value in run.config.items():
            if before.get(key, run) is not value:  # a million values of 10,000 runs, nearly all the one before
                before[key] = value
                kinds[key].add((type(value), value))
    values = {key: {shown(value) for _, value in found} for key, found in kinds.items()}

    def tells(key: str) -> bool:
        return key in ("seed", DATA_HASH) or rules is None or decides(key, rules)

    keys = [*by_importance(key for key, found in values.items() if len(found) > 1 and tells(key) and key != "seed")]
    rows = [{key: shown(run.config[key]) for key in [*keys, "seed"] if key in run.config} for run in runs]
    wanted = telling_keys([*keys, "seed"], [row for row in rows if row])
    short = short_names(wanted)
    return [{short[key]: row[key] for key in wanted if key in row} for row in rows]


def shared_by_most(rows: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """What at least two thirds of ``rows`` say, three or more: said once, it need not stand in each. The seed never."""
    found: dict[str, str] = {}
    for key in dict.fromkeys(key for row in rows for key in row if key != "seed"):
        value, count = Counter(row[key] for row in rows if key in row).most_common(1)[0]
        if count >= max(3, 2 * len(rows) / 3):
            found[key] = value
    return found


def only(runs: list[Listed], conditions: Sequence[str]) -> list[Listed]:
    """Of ``runs`` those that meet all ``conditions``; ``status`` and ``key`` can be asked for as keys are.

    Raises:
        ConfigError: for one that no run meets.
    """
    for condition in conditions:
        name, _, value = condition.partition("=")
        if name in ("status", "key"):
            there = {getattr(run, name) for run in runs}
            runs = [run for run in runs if getattr(run, name) == value]
            if not runs:
                raise ConfigError(f"{condition}: no run has this {name}. There are: {', '.join(sorted(there)[:20])}.")
        else:
            runs = keep_where(runs, [condition], "the condition")
    return runs


# -- order ------------------------------------------------------------------------------------------------


def value_of(name: str, runs: Sequence[Listed], option: str) -> Callable[[Listed], Any]:
    """What gives the value called ``name`` of a run: a key of the config, a metric, a place in the record.

    Raises:
        ConfigError: if no run has such a thing.
    """
    own: dict[str, Callable[[Listed], Any]] = {
        "name": lambda run: run.name, "key": lambda run: run.key, "status": lambda run: run.status,
        "epochs": lambda run: run.epochs, "ended_at": lambda run: run.ended_at or None,
    }  # fmt: skip
    if name in own:
        return own[name]
    metric = MetricName.from_record(name)
    wanted = name if metric is None else metric.in_history
    figures_of = {run.folder: run.values for run in runs}  # made once: an order asks for each several times
    values = {key for found in figures_of.values() for key in found}
    if wanted in values:
        return lambda run: figures_of[run.folder].get(wanted)
    keys = {key for run in runs for key in run.config}
    key = name.removeprefix("config.")
    ends = [known for known in keys if known == key or known.endswith(f".{key}")]
    if key in keys or len(ends) == 1:
        found = key if key in keys else ends[0]
        return lambda run: run.config.get(found)
    if ends:
        raise ConfigError(f"{option} {name}: several config keys end so: {listed(ends)}. Write the whole key.")
    figures = {value for value in values if (of := MetricName.from_history(value)) is None or of.split != SPLITS[0]}
    shorter = {value for value in figures if not value.startswith("selection.")} | set(own)
    raise ConfigError(
        f"{option} {name}: no run has that.{nearest(name, values | keys | set(own))} "
        f"There are {listed(shorter, limit=40)}, and the keys of the configs."
    )


def in_order(runs: Sequence[Listed], by: Callable[[Listed], Any], *, falling: bool = False) -> list[Listed]:
    """``runs`` sorted, numbers before texts; those without a value come last either way."""

    def place(run: Listed) -> tuple[int, float, str]:
        value = by(run)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return 0, float(value), ""
        return 1, 0.0, shown(value)

    with_value = [run for run in runs if by(run) is not None]
    return [*sorted(with_value, key=place, reverse=falling), *(run for run in runs if by(run) is None)]


def best_of(runs: Sequence[Listed], count: int) -> list[tuple[str, list[Listed]]]:
    """The ``count`` best on validation, of each data set and selecting figure by themselves.

    Returns:
        for each, what it is, in words, and its runs, the best first. The test decides nothing.
    """
    kinds: dict[tuple[str, str], list[Listed]] = {}
    for run in runs:
        if run.status == "finished" and run.figure("validation") is not None:
            kinds.setdefault((str(run.config.get(DATA_HASH, "")), run.selects), []).append(run)
    found = []
    for (data, selects), members in kinds.items():
        best = in_order(members, lambda run: run.figure("validation"), falling=members[0].better == "max")
        name = str(members[0].config.get("data", "data")).rpartition(".")[2]
        of = f" of {counted(len(members), 'run')} on {name} {data or 'without a hash'}" if len(kinds) > 1 else ""
        found.append((f"best on {MetricName('validation', selects).title}{of}", best[:count]))
    return found
