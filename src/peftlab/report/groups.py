"""Groups of runs: the cells of a sweep where sweep.json names them, else runs that differ in their seed only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from peftlab.errors import ConfigError, listed, nearest
from peftlab.report.groups_sweep import SweepFile
from peftlab.report.records import Run
from peftlab.report.records_config import COMPUTED, DATA_HASH, decides


@dataclass
class Group:
    """Runs that a table shows as one row: the seeds of one config, or of one cell."""

    id: str
    label: str
    runs: list[Run]
    """Finished, ordered by seed."""
    missing: dict[str, str] = field(default_factory=dict)
    """Seed (or key of a run) without a result → why."""
    logs: dict[str, str] = field(default_factory=dict)
    """Seed → where the sweep has put its log, if it has."""
    failed: list[Run] = field(default_factory=list)
    """Failed and interrupted runs that left a record."""
    section: str = ""
    """A heading that several rows share."""
    row: bool = True
    """Whether it is a row of the table."""
    curve: bool = False
    """Whether its learning curve was asked for."""
    chosen: Mapping[str, Any] = field(default_factory=dict)
    """What a search has chosen for it."""
    keys: dict[str, str] = field(default_factory=dict)
    """Config keys that differ between the groups → their value here."""

    @property
    def expected(self) -> int:
        """Runs that there should be."""
        return len(self.runs) + len(self.missing)

    def values(self, path: str) -> list[float]:
        """The numbers at ``path``, of the runs that have one."""
        return [number for run in self.runs if (number := run.number(path)) is not None]

    def by_seed(self, path: str) -> dict[int, float] | None:
        """Seed → number at ``path``; None if a seed stands twice, so that nothing can be paired by seed."""
        found: dict[int, float] = {}
        for run in self.runs:
            number = run.number(path)
            if number is not None and run.seed in found:
                return None
            if number is not None:
                found[run.seed] = number
        return found


@dataclass
class Grouped:
    """All groups of a report, and what could not be put into one."""

    groups: list[Group]
    outside: list[Run] = field(default_factory=list)
    """Runs below a sweep.json that none of its cells names."""
    tried: int = 0
    """Runs that a search has tried and not chosen."""
    key_names: dict[str, str] = field(default_factory=dict)
    """Config keys that differ between the groups → how short they can be said."""
    telling: list[str] = field(default_factory=list)
    """Those of them that labels are made of; empty where cells have labels of their own."""
    implied: list[str] = field(default_factory=list)
    """The others: they differ only where one of ``telling`` does."""


def keep_where(runs: Sequence[Run], conditions: Sequence[str]) -> list[Run]:
    """The runs whose config has ``key=value``, for each of ``conditions``.

    Raises:
        ConfigError: for a condition without '=', a key that no config has, or a value that no run has.
    """
    kept = list(runs)
    for condition in conditions:
        given, equals, value = condition.partition("=")
        if not equals:
            raise ConfigError(f"--where {condition}: write key=value, for example peft.rank=2.")
        key = known_key(given, runs, "--where")
        matching = [run for run in kept if shown(run.config.get(key)).lower() == value.lower()]
        if not matching:
            values = {shown(run.config[key]) for run in kept if key in run.config}
            raise ConfigError(f"--where {condition}: no run has this value. Values of {key}: {listed(values)}.")
        kept = matching
    return kept


def known_key(given: str, runs: Sequence[Run], option: str) -> str:
    """The config key that ``given`` means: the whole, or its last part where only one key ends so.

    Raises:
        ConfigError: if there is none, or several.
    """
    keys = {key for run in runs for key in run.config}
    if given in keys:
        return given
    ends = sorted(key for key in keys if key.endswith(f".{given}"))
    if len(ends) == 1:
        return ends[0]
    if ends:
        raise ConfigError(f"{option} {given}: several config keys end so: {', '.join(ends)}. Write the whole key.")
    near = nearest(given, keys) or nearest(given, {key.rpartition(".")[2] for key in keys})
    raise ConfigError(f"{option} {given}: no run has this config key.{near} Keys: {listed(keys, limit=80)}.")


def shown(value: Any) -> str:
    """A config value as the command line writes it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value).replace('"', "")


def group_runs(runs: Sequence[Run], sweeps: Sequence[SweepFile], *, by: Sequence[str], filtered: bool) -> Grouped:
    """Put ``runs`` into groups.

    Args:
        runs: finished and failed ones.
        sweeps: the sweep.json files above them; their cells are groups, unless ``by`` is given.
        by: config keys to group by instead; empty: the whole config without the seed.
        filtered: whether --where has taken runs away, so that a missing one is not missed.
    """
    if by:
        keys = [known_key(key, runs, "--by") for key in by]
        # what was computed otherwise is never in the mean of what was not
        told = [*keys, COMPUTED]
        groups = _by_config(runs, {id(run): tuple(shown(run.config.get(key)) for key in told) for run in runs})
        return _labelled(Grouped(groups), keys)
    grouped, left = Grouped([]), list(runs)
    for sweep in sweeps:
        inside = [run for run in left if run.folder.rpartition("/")[0] == sweep.folder]
        left = [run for run in left if run.folder.rpartition("/")[0] != sweep.folder]
        prefix = f"{sweep.title}: " if len(sweeps) > 1 else ""
        grouped.groups += _cells(sweep, inside, prefix, filtered=filtered)
        named = {run.key for group in grouped.groups for run in [*group.runs, *group.failed]}
        tried = {key for cell in sweep.cells for key in cell.tried}
        grouped.tried += len([run for run in inside if run.key in tried - named])
        grouped.outside += [run for run in inside if run.key not in named | tried]
    cells = list(grouped.groups)
    grouped.groups += _by_config(left, {id(run): run.identity for run in left})
    return _labelled(grouped, None, named=cells)


def _cells(sweep: SweepFile, runs: Sequence[Run], prefix: str, *, filtered: bool) -> list[Group]:
    by_key = {run.key: run for run in runs}
    groups = []
    for cell in sweep.cells:
        found = [(seed, by_key[key]) for seed, key in cell.runs.items() if key in by_key]
        # A failed run has no key in the file; it is the cell's if it differs from its other runs in the seed only.
        alike = {run.identity for _, run in found}
        found += [
            (str(run.seed), run)
            for run in runs
            if not run.finished and run.identity in alike and str(run.seed) in cell.failed
        ]
        kinds = _kinds([run for _, run in found if run.finished])
        words, first = next(iter(kinds.items()), ("", []))
        group = Group(
            id=cell.id, label=prefix + (cell.label or cell.id), section=cell.group, row=cell.row, curve=cell.curve,
            runs=first, failed=[run for _, run in found if not run.finished], chosen=cell.chosen,
            logs={seed: f"{sweep.folder}/.logs/{key}.txt" for seed, key in cell.runs.items()}
            | {seed: f"{sweep.folder}/{path}" for seed, path in cell.logs.items()},
        )  # fmt: skip
        apart = [_apart(group, *kind) for kind in list(kinds.items())[1:]]
        if apart and words:
            group.label += f", computed {words}"
        there = {seed for seed, run in found if run.finished}
        if not filtered or group.failed:
            noted = {seed: run.error or run.status for seed, run in found if not run.finished}
            seeds = dict.fromkeys([*map(str, sweep.seeds), *cell.runs, *cell.failed])
            for seed in [*noted] if filtered else seeds:
                if seed not in there:
                    group.missing[seed] = cell.failed.get(seed) or noted.get(seed) or "no record yet"
        if group.runs or group.missing:
            groups.append(group)
        groups += apart
    return groups


def _kinds(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """``runs`` by how they were computed, those as today first; no mean is over more than one of these."""
    kinds: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: (run.config.get(COMPUTED, ""), run.seed)):
        kinds.setdefault(run.config.get(COMPUTED, ""), []).append(run)
    return kinds


def _apart(cell: Group, words: str, runs: list[Run]) -> Group:
    """The row of those runs of a cell that were computed otherwise than its others."""
    name = f"computed {words}"
    return replace(
        cell, id=f"{cell.id}, {name}", label=f"{cell.label}, {name}", runs=runs, failed=[], missing={}, logs={}, keys={}
    )


def _by_config(runs: Sequence[Run], identities: Mapping[int, Any]) -> list[Group]:
    members: dict[Any, list[Run]] = {}
    for run in runs:
        members.setdefault(identities[id(run)], []).append(run)
    groups = []
    for of_group in members.values():
        finished = sorted((run for run in of_group if run.finished), key=lambda run: run.seed)
        seeds = {run.seed for run in finished}
        failed = [run for run in of_group if not run.finished]
        missing = {str(run.seed): run.error or run.status for run in failed if run.seed not in seeds}
        groups.append(Group(id="", label="", runs=finished, failed=failed, missing=missing))
    return groups


def _labelled(grouped: Grouped, by: Sequence[str] | None, named: Sequence[Group] = ()) -> Grouped:
    """Find the keys that differ between the groups, and call those groups by them that have no label yet."""
    keys = list(by) if by is not None else _varying(grouped.groups)
    grouped.key_names = _short(keys)
    for group in grouped.groups:
        members = group.runs or group.failed
        for key in keys:
            values = dict.fromkeys(shown(run.config[key]) for run in members if key in run.config)
            if values:
                group.keys[key] = "|".join(values)
    if any(_computed(group) for group in grouped.groups) and COMPUTED not in keys:
        keys.append(COMPUTED)
        grouped.key_names |= _short([COMPUTED])
        for group in grouped.groups:
            group.keys |= {COMPUTED: words} if (words := _computed(group)) else {}
    unnamed = [group for group in grouped.groups if not any(group is other for other in named)]
    unnamed.sort(key=lambda group: [_order(group.keys.get(key)) for key in keys])
    grouped.groups = [*named, *unnamed]
    telling = keys if by is not None else _telling(keys, unnamed)
    if len({group.keys.get(COMPUTED) for group in unnamed}) > 1 and COMPUTED not in telling:
        telling = [*telling, COMPUTED]  # even where others tell the rows apart: it is no difference of their configs
    if by is None and (of_data := _telling_data(telling, unnamed)):
        grouped.key_names |= _short(of_data)
        telling = [*telling, *of_data]
    if unnamed and not named:
        grouped.telling, grouped.implied = telling, [key for key in keys if key not in (*telling, COMPUTED)]
    taken: dict[str, int] = {}
    for group in unnamed:
        text = " ".join(f"{grouped.key_names[key]}={group.keys[key]}" for key in telling if key in group.keys)
        members = group.runs or group.failed
        text = text or (members[0].name if members else "")
        taken[text] = taken.get(text, 0) + 1
        group.label = group.id = text if taken[text] == 1 else f"{text} ({taken[text]})"
    return grouped


def _computed(group: Group) -> str:
    """How the runs of ``group``, which are alike in this, were computed; empty: as today."""
    members = group.runs or group.failed
    return str(members[0].config.get(COMPUTED, "")) if members else ""


def _varying(groups: Iterable[Group]) -> list[str]:
    """Keys that do not have one value everywhere, of those that decide numbers: method first, then its rank, …"""
    values: dict[str, set[str]] = {}
    for group in groups:
        for run in [*group.runs[:1], *group.failed[: not group.runs]]:
            for key, value in run.config.items():
                if decides(key, run.rules):
                    values.setdefault(key, set()).add(shown(value))
    varying = [key for key, found in values.items() if len(found) > 1]
    place = {key: number for number, key in enumerate(varying)}
    return sorted(varying, key=lambda key: (_first(key), key.count("."), place[key]))


def _first(key: str) -> int:
    names = ("peft", "peft.rank", "peft.*", "data", "backbone", "optim", "schedule", "trainer")
    group = key.partition(".")[0]
    wanted = key if key in names else "peft.*" if group == "peft" else group
    return names.index(wanted) if wanted in names else len(names)


def _telling(keys: Sequence[str], groups: Sequence[Group]) -> list[str]:
    """Of ``keys``, in their order, those that tell groups apart which the ones before leave together."""
    kept: list[str] = []
    parts: list[tuple[str | None, ...]] = [() for _ in groups]
    for key in keys:
        finer = [(*part, group.keys.get(key)) for part, group in zip(parts, groups, strict=True)]
        if len(set(finer)) > len(set(parts)):
            kept.append(key)
            parts = finer
    return kept


def _telling_data(keys: Sequence[str], groups: Sequence[Group]) -> list[str]:
    """Put into ``groups`` what tells those apart which ``keys`` leave together, being one config on other data.

    That is the names of their files, and the hash of the texts where names do not tell. Returns the keys of these.
    """
    alike: dict[tuple[str | None, ...], list[Group]] = {}
    for group in groups:
        alike.setdefault(tuple(group.keys.get(key) for key in keys), []).append(group)
    found: dict[str, None] = {}
    for members in alike.values():
        if len({run.config.get(DATA_HASH) for group in members for run in group.runs}) < 2:
            continue
        told = _file_names(members)
        if len({tuple(of.items()) for of in told}) < len(members):
            for of, group in zip(told, members, strict=True):
                of[DATA_HASH] = "|".join(dict.fromkeys(shown(run.config.get(DATA_HASH)) for run in group.runs))
        for of, group in zip(told, members, strict=True):
            group.keys |= of
            found |= dict.fromkeys(of)
    return list(found)


def _file_names(groups: Sequence[Group]) -> list[dict[str, str]]:
    """Of each group, the files that its config names and that differ; their paths where the names are alike."""
    told: list[dict[str, str]] = [{} for _ in groups]
    runs = [group.runs or group.failed for group in groups]
    for key, rules in [(key, run.rules) for run in runs[0][:1] for key in run.config]:
        if not key.startswith("data.") or key == DATA_HASH or decides(key, rules):
            continue
        values = [{run.config.get(key) for run in members} for members in runs]
        if any(len(of) > 1 or not isinstance(next(iter(of)), str | None) for of in values):
            continue
        paths = [next(iter(of)) for of in values]
        names = [None if path is None else Path(path).name for path in paths]
        if len(set(paths)) > 1:
            for of, path, name in zip(told, paths, names, strict=True):
                of[key] = shown(name if len(set(names)) == len(set(paths)) else path)
    return told


def _order(value: str | None) -> tuple[int, float, str]:
    try:
        return (1, float(value or "x"), "")
    except ValueError:
        return (0 if value is None else 2, 0.0, value or "")


def _short(keys: Sequence[str]) -> dict[str, str]:
    """Key → its last part, or the whole where that is not clear."""
    last = [key.rpartition(".")[2] for key in keys]
    return {key: short if last.count(short) == 1 else key for key, short in zip(keys, last, strict=True)}
