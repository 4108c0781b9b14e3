"""Reading records: what a report needs of each run, and why a record could not be read. Imports no torch.

A record is some ten kilobytes of JSON; of ten thousand of them only the config, the wanted values and the learning
curve are kept.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from peftlab.class_names import stable_name
from peftlab.errors import PeftlabError, RunError
from peftlab.metric_names import record_part
from peftlab.objectives.recorded import BEFORE, objective_facts
from peftlab.reading import read_json
from peftlab.records.continuing import FIELD as CONTINUED
from peftlab.records.divergence import STATUS, in_words
from peftlab.records.divergence import diverged as trained_to_no_number
from peftlab.records.folder import SCHEMA_VERSION, RunFolder
from peftlab.records.identity_recorded import recorded_rules
from peftlab.records.identity_rules import Rules
from peftlab.records.identity_tags import Standing, standing
from peftlab.report.forks import cpus, map_in_forks
from peftlab.report.records_config import COMPUTED, DATA_HASH, HASH_LETTERS, TARGET, code_keys, flat, identity_of
from peftlab.report.records_facts import facts_of
from peftlab.report.records_find import Found, LeftOut
from peftlab.training.places import epochs_done

MANY_RECORDS = 1_000
"""From so many on, starting processes to read them takes less time than it saves."""


@dataclass(slots=True)
class Run:
    """What a report keeps of one record."""

    folder: str
    key: str
    status: str
    """``finished``, ``failed`` or ``interrupted``."""
    name: str
    seed: int
    config: dict[str, Any]
    """Dotted key → value, lists as JSON; bookkeeping included, so that one can filter by it."""
    identity: str
    """The config without the seed and without bookkeeping, the hashes of code that is not peftlab's and of the data,
    and how the numbers were computed where that is not as today: equal for runs that differ in their seed only."""
    rules: Rules
    """Which fields of the config enter the key, as the record says; shared between runs."""
    targets: Mapping[str, str]
    """Group → its class."""
    start: tuple[str, str] | None
    """Key and method (empty if not known) of the run that this one started from."""
    values: dict[str, Any]
    """Wanted path → number or text; None where the record says null."""
    curve: dict[str, tuple[tuple[float, float], ...]]
    """Name of a quantity → epochs that are done (1 at the end of the first), and its value there."""
    facts: Mapping[str, str]
    """What must be alike for runs to be compared: data, versions, hardware, … as text; shared between runs."""
    standing: Standing
    """Whether its numbers were computed as those of its config are today."""
    error: str
    files: frozenset[str]
    """Names of the files in the run's folder."""
    logged: bool
    """Whether a sweep has left its log in ``.logs/<key>.txt`` beside the run's folder."""

    @property
    def finished(self) -> bool:
        """Whether it has results."""
        return self.status == "finished"

    def number(self, path: str) -> float | None:
        """The value at ``path`` if it is a number."""
        value = self.values.get(path)
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None

    @property
    def diverged(self) -> bool:
        """Whether its training loss became infinite or no number; it has no results then."""
        return self.status == STATUS


def read_runs(found: Found, paths: Iterable[str], curves: Sequence[str]) -> list[Run]:
    """Read every record of ``found``; what cannot be read goes to ``found.left_out``.

    Args:
        found: of :func:`find`.
        paths: places of the values that are wanted, such as ``metrics.test.loss``.
        curves: quantities of the history that are wanted.

    Raises:
        RunError: if there is no record at all.
    """
    if not found.run_folders:
        there = f" There are: {', '.join(found.seen[:8])}." if found.seen else " It is empty."
        raise RunError(f"no record.json found: no run there has finished or failed.{there}")
    split = [(path, path.split(".")) for path in dict.fromkeys(paths)]
    wanted = _Wanted(split, tuple(curves), among_many=len(found.run_folders) >= MANY_RECORDS)
    runs, first_at = [], dict[str, str]()
    for read in _read_all(found.run_folders, wanted):
        if isinstance(read, LeftOut):
            found.left_out.append(read)
            continue
        read.logged = f"{read.folder.rpartition('/')[0]}/{read.key}" in found.logs
        if read.finished and read.key in first_at:
            reason = f"is the same run as the one in {first_at[read.key]}"
            found.left_out.append(LeftOut(f"{read.folder}/record.json", reason))
            continue
        if read.finished:
            first_at[read.key] = read.folder
        runs.append(read)
    _name_data(runs)
    _name_computed(runs)
    _name_starts(runs)
    if not runs:
        raise RunError(
            f"none of the {len(found.run_folders)} records can be read. {found.left_out[0].path} "
            f"{found.left_out[0].reason}."
        )
    return runs


def first_objective(found: Found) -> Mapping[str, Any]:
    """What the first finished record says of its objective: what is reported unless something else is asked for."""
    for folder, _ in found.run_folders:
        record = _record(folder)
        if not isinstance(record, LeftOut) and record.get("status") == "finished":
            return objective_facts(record)
    return BEFORE


@dataclass(frozen=True)
class _Wanted:
    """What is kept of each record."""

    paths: list[tuple[str, list[str]]]
    curves: tuple[str, ...]
    among_many: bool


def _read_all(folders: Sequence[tuple[str, frozenset[str]]], wanted: _Wanted) -> list[Run | LeftOut]:
    """Every record, in order."""
    if cpus() == 1 or not wanted.among_many:
        return _read_some(folders, wanted)
    size = -(-len(folders) // (4 * cpus()))
    parts = [folders[begin : begin + size] for begin in range(0, len(folders), size)]
    read = map_in_forks(_read_some, parts, [wanted] * len(parts), meanwhile=_import_tests)
    return list(chain.from_iterable(read))


def _import_tests() -> None:
    """Bring what the tests of rows need (:mod:`peftlab.report.best`) while others read."""
    import scipy.stats  # type: ignore[import-untyped]  # noqa: F401


def _read_some(folders: Sequence[tuple[str, frozenset[str]]], wanted: _Wanted) -> list[Run | LeftOut]:
    shared: dict[tuple[str, ...], Mapping[str, str]] = {}
    return [_read(folder, files, wanted, shared) for folder, files in folders]


def _read(
    folder: str, files: frozenset[str], wanted: _Wanted, shared: dict[tuple[str, ...], Mapping[str, str]]
) -> Run | LeftOut:
    record = _record(folder, among_many=wanted.among_many)
    if isinstance(record, LeftOut):
        return record
    try:
        return _run(folder, files, record, wanted, shared)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        reason = f"is damaged: no {error}" if isinstance(error, KeyError) else f"is damaged ({error})"
        return LeftOut(f"{folder}/record.json", reason)


def _record(folder: str, *, among_many: bool = False) -> dict[str, Any] | LeftOut:
    path = f"{folder}/record.json"
    try:
        return RunFolder(Path(folder)).read_record(among_many=among_many) or LeftOut(path, "has gone")
    except PeftlabError as error:
        reason = _why_no_record(path) or str(error).removeprefix(path).strip().split(". ")[0].rstrip(".")
    except (OSError, ValueError, RecursionError) as error:
        reason = f"cannot be read ({error})"
    return LeftOut(path, reason)


def _why_no_record(path: str) -> str:
    """Of a file that is whole, but no record: what it is; empty for others."""
    try:
        found = read_json(Path(path))
    except (OSError, ValueError, RecursionError):
        return ""
    if not isinstance(found, dict) or "schema_version" not in found:
        return "is not a record of peftlab: it has no schema_version"
    version = found["schema_version"]
    if not isinstance(version, int):
        return f"has the schema version {json.dumps(version)}; it must be a number, such as {SCHEMA_VERSION}"
    return ""


def _run(
    folder: str,
    files: frozenset[str],
    record: dict[str, Any],
    wanted: _Wanted,
    shared: dict[tuple[str, ...], Mapping[str, str]],
) -> Run:
    config, status = record["config"], record["status"]
    start = (record.get("backbone") or {}).get("from_run") or {}
    if status not in ("finished", "failed", "interrupted", STATUS):
        raise ValueError(f"unknown status {status!r}")
    if status == "finished" and not isinstance(record["metrics"]["test"], dict):
        raise ValueError(f"{record_part('test')} is no mapping")
    error = str(record.get("error", ""))
    if status == "finished" and trained_to_no_number(record):  # earlier versions trained on, and called it finished
        status, error = STATUS, error or in_words(record)
    facts, rules = facts_of(record), recorded_rules(record)
    config, code = _without_path(config, record), code_keys(record)
    return Run(
        folder=folder,
        key=record["key"],
        status=status,
        name=record["name"],
        seed=int(record["seeds"]["seed"]),
        config=flat(config) | code,
        identity=_identity(config, rules) if not code else sys.intern(f"{_identity(config, rules)} {code}"),
        rules=rules,
        targets={
            name: stable_name(str(part.get(TARGET, ""))) for name, part in config.items() if isinstance(part, dict)
        },
        start=_start(config, start),
        values={path: value_at(record, parts) for path, parts in wanted.paths},
        curve={
            name: tuple(
                (epochs_done(row), float(row[name])) for row in record.get("history", []) if row.get(name) is not None
            )
            for name in wanted.curves
        },
        facts=shared.setdefault(tuple(facts.values()), facts),
        standing=standing(record),
        error=error,
        files=files,
        logged=False,
    )


def _name_data(runs: Sequence[Run]) -> None:
    """Put the hash of the data into config and identity: files enter a config by their paths, which decide nothing.

    A run that failed has no hash. It is taken to have that of the finished runs of its config, and where these have
    several, of those that name the same files.
    """
    known: dict[str, set[str]] = {}
    by_files: dict[tuple[str, ...], set[str]] = {}
    for run in runs:
        if run.facts["data hash"]:
            known.setdefault(run.identity, set()).add(run.facts["data hash"])
            by_files.setdefault((run.identity, *_data_words(run)), set()).add(run.facts["data hash"])
    for run in runs:
        found = run.facts["data hash"]
        if not found:
            alike = known.get(run.identity, set())
            alike = alike if len(alike) == 1 else by_files.get((run.identity, *_data_words(run)), set())
            found = next(iter(alike)) if len(alike) == 1 else ""
        if found:
            run.config[DATA_HASH] = sys.intern(found[:HASH_LETTERS])
        run.identity = sys.intern(f"{run.identity} on {found}")


def _name_computed(runs: Sequence[Run]) -> None:
    """Put how the numbers were computed into config and identity, where that is not as today.

    A run that failed has no numbers. It is a missing seed of the finished runs of its own time, or where there are
    none, of those as today.
    """
    finished: dict[str, list[str]] = {}
    for run in runs:
        if run.finished:
            finished.setdefault(run.identity, []).append(run.standing.words)
    for run in runs:
        words, alike = run.standing.words, finished.get(run.identity, [])
        if words and words in alike:
            run.config[COMPUTED] = sys.intern(words)
            run.identity = sys.intern(f"{run.identity} computed {words}")


def _data_words(run: Run) -> list[str]:
    return [f"{key}={value}" for key, value in run.config.items() if key.startswith("data.") and key != DATA_HASH]


def _without_path(config: dict[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """``config`` with ``after epoch 2``, the same for all seeds, in the place of the path of a run it goes on with."""
    if config.get("continue_from") is None:
        return {name: value for name, value in config.items() if name != "continue_from"}
    ends = (record.get(CONTINUED) or {}).get("ends") or ["?"]
    return config | {"continue_from": f"after epoch {', '.join(map(str, ends))}"}


def _identity(config: Mapping[str, Any], rules: Rules) -> str:
    said, continued = identity_of(config, rules), config.get("continue_from")
    return said if continued is None else sys.intern(f"{said} {continued}")


def _start(config: Mapping[str, Any], facts: Mapping[str, Any]) -> tuple[str, str] | None:
    path = config["backbone"].get("from_run")
    return None if path is None else (Path(path).name, str(facts.get("method") or ""))


def _name_starts(runs: Sequence[Run]) -> None:
    """Put what a run starts from in the place of a path into its config and identity."""
    by_key = {run.key: run for run in runs}
    methods = {run.start[0]: run.start[1] for run in runs if run.start and run.start[1]}
    for run in runs:
        if run.start is None:
            continue
        earlier = by_key.get(run.start[0])
        method = methods.get(run.start[0]) or (earlier.config["peft"] if earlier else "an earlier run")
        of = f" on {earlier.config['data']}" if earlier else ""
        of += f", computed {earlier.config[COMPUTED]}" if earlier and COMPUTED in earlier.config else ""
        run.config["backbone.from_run"] = f"{method}{of}"
        identity = earlier.identity if earlier else method  # not of the starts' starts: their seeds are this run's
        run.identity = sys.intern(f"{run.identity} from {identity.partition(' from ')[0]}")


def value_at(record: Mapping[str, Any], parts: Sequence[str]) -> Any:
    """The value at a place of a record; None if it is null or not there. Lists and mappings come as JSON."""
    found: Any = record
    for part in parts:
        if not isinstance(found, Mapping) or part not in found:
            return None
        found = found[part]
    return json.dumps(found, ensure_ascii=False) if isinstance(found, dict | list) else found


def number_paths(found: Found, limit: int = 25) -> list[str]:
    """Places where the first finished records hold numbers, for a message about a wrong one."""
    paths: dict[str, None] = {}
    for folder, _ in found.run_folders[:limit]:
        record = _record(folder)
        for path, value in _leaves({} if isinstance(record, LeftOut) else record):
            if isinstance(value, int | float) and not isinstance(value, bool):
                paths[path] = None
    return list(paths)


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
