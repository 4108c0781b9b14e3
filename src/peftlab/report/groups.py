"""Groups of runs: what a sweep.json names, else runs that differ in their seed only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from peftlab.report.groups_sweep import SweepArm, SweepFile
from peftlab.report.key_names import by_importance, known_key, short_names, shown, telling_keys
from peftlab.report.records import Run
from peftlab.report.records_config import COMPUTED, DATA_HASH, decides


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that a table shows as one row: the seeds of one config, or of one arm of a sweep.json."""

    id: str
    label: str
    runs: Sequence[Run]
    """Finished, ordered by seed."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Seed (or key of a run) without a result → why."""
    logs: Mapping[str, str] = field(default_factory=dict)
    """Seed → where the sweep has put its log, if it has."""
    failed: Sequence[Run] = ()
    """Failed and interrupted runs that left a record."""
    section: str = ""
    """A heading that several rows share."""
    row: bool = True
    """Whether it is a row of the table."""
    curve: bool = False
    """Whether its learning curve was asked for."""
    chosen: Mapping[str, Any] = field(default_factory=dict)
    """What a search has chosen for it."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """Config keys that differ between the groups → their value here."""

    @property
    def expected(self) -> int:
        """Runs that there should be."""
        return len(self.runs) + len(self.missing)

    @property
    def diverged(self) -> list[str]:
        """Seeds without a result whose training diverged."""
        return [str(run.seed) for run in self.failed if run.diverged and str(run.seed) in self.missing]

    @property
    def unit(self) -> str:
        """What its runs are counted as: seeds, unless a seed stands twice, as in groups by less than the config."""
        return "runs" if len({run.seed for run in self.runs}) < len(self.runs) else "seeds"

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


@dataclass(frozen=True)
class Grouped:
    """All groups of a report, and what could not be put into one."""

    groups: Sequence[Group]
    outside: Sequence[Run] = ()
    """Runs below a sweep.json that none of its rows names."""
    tried: int = 0
    """Runs that a search has tried and not chosen."""
    key_names: Mapping[str, str] = field(default_factory=dict)
    """Config keys that differ between the groups → how short they can be said."""
    telling: Sequence[str] = ()
    """Those of them that labels are made of; empty where a sweep has given labels."""
    implied: Sequence[str] = ()
    """The others: they differ only where one of ``telling`` does."""


def group_runs(runs: Sequence[Run], sweeps: Sequence[SweepFile], *, by: Sequence[str], filtered: bool) -> Grouped:
    """Put ``runs`` into groups.

    Args:
        runs: finished and failed ones.
        sweeps: the sweep.json files above them; what they name are groups, unless ``by`` is given.
        by: config keys to group by instead; empty: the whole config without the seed.
        filtered: whether --where has taken runs away, so that a missing one is not missed.
    """
    if by:
        keys = [known_key(key, runs, "--by") for key in by]
        # what was computed otherwise is never in the mean of what was not
        told = [*keys, COMPUTED]
        return _labelled(
            [], _by_config(runs, [tuple(shown(run.config.get(key)) for key in told) for run in runs]), keys
        )
    named: list[Group] = []
    outside: list[Run] = []
    tried, left = 0, list(runs)
    for sweep in sweeps:
        inside = [run for run in left if run.folder.rpartition("/")[0] == sweep.folder]
        left = [run for run in left if run.folder.rpartition("/")[0] != sweep.folder]
        prefix = f"{sweep.title}: " if len(sweeps) > 1 else ""
        named += _of_sweep(sweep, inside, prefix, filtered=filtered)
        there = {run.key for group in named for run in [*group.runs, *group.failed]}
        trials = {key for arm in sweep.arms for key in arm.tried}
        tried += len([run for run in inside if run.key in trials - there])
        outside += [run for run in inside if run.key not in there | trials]
    found = _labelled(named, _by_config(left, [run.identity for run in left]), None)
    return replace(found, outside=outside, tried=tried)


def _of_sweep(sweep: SweepFile, runs: Sequence[Run], prefix: str, *, filtered: bool) -> list[Group]:
    by_key = {run.key: run for run in runs}
    groups = []
    for arm in sweep.arms:
        found = [(seed, by_key[key]) for seed, key in arm.runs.items() if key in by_key]
        # A failed run has no key in the file; it is this arm's if it differs from its other runs in the seed only.
        alike = {run.identity for _, run in found}
        found += [
            (str(run.seed), run)
            for run in runs
            if not run.finished and run.identity in alike and str(run.seed) in arm.failed
        ]
        kinds = _kinds([run for _, run in found if run.finished])
        words, first = next(iter(kinds.items()), ("", []))
        several = f", computed {words}" if words and len(kinds) > 1 else ""
        label = prefix + (arm.label or arm.id)
        group = Group(
            id=arm.id, label=label + several, section=arm.group, row=arm.row, curve=arm.curve,
            runs=first, failed=[run for _, run in found if not run.finished], chosen=arm.chosen,
            missing=_missing(sweep, arm, found, filtered=filtered),
            logs={seed: f"{sweep.folder}/.logs/{key}.txt" for seed, key in arm.runs.items()}
            | {seed: f"{sweep.folder}/{path}" for seed, path in arm.logs.items()},
        )  # fmt: skip
        groups += [group] if group.runs or group.missing else []
        groups += [_apart(replace(group, label=label), *kind) for kind in list(kinds.items())[1:]]
    return groups


def _missing(sweep: SweepFile, arm: SweepArm, found: Sequence[tuple[str, Run]], *, filtered: bool) -> dict[str, str]:
    """Seeds of ``arm`` without a result, each with the reason."""
    there = {seed for seed, run in found if run.finished}
    noted = {seed: run.error or run.status for seed, run in found if not run.finished}
    seeds = noted if filtered else dict.fromkeys([*map(str, sweep.seeds), *arm.runs, *arm.failed])
    return {seed: arm.failed.get(seed) or noted.get(seed) or "no record yet" for seed in seeds if seed not in there}


def _kinds(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """``runs`` by how they were computed, those as today first; no mean is over more than one of these."""
    kinds: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: (run.config.get(COMPUTED, ""), run.seed)):
        kinds.setdefault(run.config.get(COMPUTED, ""), []).append(run)
    return kinds


def _apart(group: Group, words: str, runs: list[Run]) -> Group:
    """The row of those runs that were computed otherwise than the others of ``group``."""
    name = f"computed {words}"
    return replace(
        group, id=f"{group.id}, {name}", label=f"{group.label}, {name}", runs=runs, failed=[], missing={}, logs={}
    )


def _by_config(runs: Sequence[Run], identities: Sequence[Any]) -> list[Group]:
    """Groups of ``runs`` that have the same of ``identities``."""
    members: dict[Any, list[Run]] = {}
    for run, identity in zip(runs, identities, strict=True):
        members.setdefault(identity, []).append(run)
    groups = []
    for of_group in members.values():
        finished = sorted((run for run in of_group if run.finished), key=lambda run: run.seed)
        seeds = {run.seed for run in finished}
        failed = [run for run in of_group if not run.finished]
        missing = {str(run.seed): run.error or run.status for run in failed if run.seed not in seeds}
        groups.append(Group(id="", label="", runs=finished, failed=failed, missing=missing))
    return groups


def _labelled(named: Sequence[Group], unnamed: Sequence[Group], by: Sequence[str] | None) -> Grouped:
    """Find the keys that differ between the groups, and call those of ``unnamed`` by them."""
    everything = [*named, *unnamed]
    later = _came_later(everything)
    keys = list(by) if by is not None else _varying(everything, later)
    key_names = short_names(keys)
    if any(map(_computed, everything)) and COMPUTED not in keys:
        keys.append(COMPUTED)
        key_names |= short_names([COMPUTED])
    named, unnamed = (
        [replace(group, keys=_values(group, keys, later)) for group in groups] for groups in (named, unnamed)
    )
    unnamed.sort(key=lambda group: [_order(group.keys.get(key)) for key in keys])
    telling = list(keys) if by is not None else telling_keys(keys, [group.keys for group in unnamed])
    if len({group.keys.get(COMPUTED) for group in unnamed}) > 1 and COMPUTED not in telling:
        telling.append(COMPUTED)  # even where others tell the rows apart: it is no difference of their configs
    if by is None:
        unnamed, of_data = _told_by_data(telling, unnamed)
        key_names |= short_names(of_data)
        telling += of_data
    unnamed = _with_labels(unnamed, telling, key_names)
    if not unnamed or named:
        return Grouped([*named, *unnamed], key_names=key_names)
    implied = [key for key in keys if key not in (*telling, COMPUTED)]
    return Grouped(unnamed, key_names=key_names, telling=telling, implied=implied)


Later = Mapping[str, tuple[Any, str | None]]
"""Key that not every record has → its default, and the class of its group."""


def _came_later(groups: Iterable[Group]) -> Later:
    """Keys that came with later versions: a record of the same classes that lacks one is of a run at the default."""
    found: dict[str, tuple[Any, str | None]] = {"continue_from": (None, None)}
    for run in (run for group in groups for run in (group.runs or group.failed)[:1]):
        for key, default in run.rules.added.items():
            found[key] = default, run.targets.get(key.partition(".")[0])
    return found


def _said(run: Run, key: str, later: Later) -> str | None:
    """The value of ``key`` as the command line writes it; None if the run has no such key."""
    if key in run.config:
        return shown(run.config[key])
    if key in later and run.targets.get(key.partition(".")[0]) == later[key][1]:
        return shown(later[key][0])
    return None


def _values(group: Group, keys: Sequence[str], later: Later) -> dict[str, str]:
    """Those of ``keys`` that the runs of ``group`` have → their values."""
    members = group.runs or group.failed
    found = {key: dict.fromkeys(one for run in members if (one := _said(run, key, later))) for key in keys}
    return {key: "|".join(values) for key, values in found.items() if values}


def _with_labels(groups: Sequence[Group], telling: Sequence[str], key_names: Mapping[str, str]) -> list[Group]:
    """``groups`` with labels of the keys that tell them apart, which are their ids too."""
    taken: dict[str, int] = {}
    labelled = []
    for group in groups:
        text = " ".join(f"{key_names[key]}={group.keys[key]}" for key in telling if key in group.keys)
        members = group.runs or group.failed
        text = text or (members[0].name if members else "")
        taken[text] = taken.get(text, 0) + 1
        label = text if taken[text] == 1 else f"{text} ({taken[text]})"
        labelled.append(replace(group, id=label, label=label))
    return labelled


def with_one_id_each(rows: Sequence[Group]) -> list[Group]:
    """``rows``; those of several sweeps may share an id, and then labels, which name the sweep, take its place."""
    ids, labels = Counter(row.id for row in rows), Counter(row.label for row in rows)
    return [
        row if ids[row.id] == 1 else replace(row, id=row.label if labels[row.label] == 1 else f"{row.label} [{number}]")
        for number, row in enumerate(rows)
    ]


def _computed(group: Group) -> str:
    """How the runs of ``group``, which are alike in this, were computed; empty: as today."""
    members = group.runs or group.failed
    return str(members[0].config.get(COMPUTED, "")) if members else ""


def _varying(groups: Iterable[Group], later: Later) -> list[str]:
    """Keys that do not have one value everywhere, of those that decide numbers: method first, then its rank, …"""
    firsts = [run for group in groups for run in [*group.runs[:1], *group.failed[: not group.runs]]]
    values: dict[str, set[str]] = {}
    for run in firsts:
        for key, value in run.config.items():
            if decides(key, run.rules):
                values.setdefault(key, set()).add(shown(value))
    for key in values.keys() & later.keys():
        values[key] |= {said for run in firsts if (said := _said(run, key, later)) is not None}
    return by_importance(key for key, found in values.items() if len(found) > 1)


def _told_by_data(keys: Sequence[str], groups: Sequence[Group]) -> tuple[list[Group], list[str]]:
    """``groups`` with what tells those apart which ``keys`` leave together, being one config on other data.

    That is the names of their files, and the hash of the texts where names do not tell. Returns the keys of these too.
    """
    alike: dict[tuple[str | None, ...], list[int]] = {}
    for number, group in enumerate(groups):
        alike.setdefault(tuple(group.keys.get(key) for key in keys), []).append(number)
    told_apart, found = list(groups), dict[str, None]()
    for numbers in alike.values():
        members = [groups[number] for number in numbers]
        if len({run.config.get(DATA_HASH) for group in members for run in group.runs}) < 2:
            continue
        told = _file_names(members)
        if len({tuple(of.items()) for of in told}) < len(members):
            for of, group in zip(told, members, strict=True):
                of[DATA_HASH] = "|".join(dict.fromkeys(shown(run.config.get(DATA_HASH)) for run in group.runs))
        for of, group, number in zip(told, members, numbers, strict=True):
            told_apart[number] = replace(group, keys={**group.keys, **of})
            found |= dict.fromkeys(of)
    return told_apart, list(found)


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
