"""Runs as a list of them needs them: what tells them apart, conditions, order, the best. Imports no torch."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from peftlab.errors import ConfigError, counted, listed, nearest
from peftlab.metric_names import SPLITS, MetricName
from peftlab.report.key_names import by_importance, keep_where, short_names, shown, telling_keys
from peftlab.report.listed import Listed
from peftlab.report.records_config import DATA_HASH, decides


def told_apart(runs: Sequence[Listed]) -> list[dict[str, str]]:
    """Of each run, what its config says that those of others do not: ``{peft: lora, rank: 4, seed: 1}``."""
    fields = {id(field): field for run in runs for field in run.fields}  # 10,000 runs repeat the same few
    rules = next((run.rules for run in runs if run.rules is not None), None)
    kinds = defaultdict[str, set[tuple[type, Any]]](set)  # true, 1 and 1.0 are equal, and shown as three
    for field in fields.values():
        for key, value in field.items():
            kinds[key].add((type(value), value))
    values = {key: {shown(value) for _, value in found} for key, found in kinds.items()}

    def tells(key: str) -> bool:
        return key in ("seed", DATA_HASH) or rules is None or decides(key, rules)

    keys = [*by_importance(key for key, found in values.items() if len(found) > 1 and tells(key) and key != "seed")]
    said = [*keys, "seed"]
    says = {number: {key: shown(field[key]) for key in said if key in field} for number, field in fields.items()}
    rows: list[dict[str, str]] = []
    for run in runs:
        row: dict[str, str] = {}
        for field in run.fields:
            if of_field := says[id(field)]:
                row |= of_field
        rows.append(row)
    wanted = telling_keys(said, [row for row in rows if row])
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
