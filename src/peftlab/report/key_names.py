"""Keys of configs as people say them: short, and their values as the command line writes them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol, TypeVar

from peftlab.errors import ConfigError, listed, nearest


class HasConfig(Protocol):
    """A run, as conditions see it."""

    @property
    def config(self) -> Mapping[str, Any]:
        """Dotted key → value."""
        ...


Run = TypeVar("Run", bound=HasConfig)


@lru_cache(maxsize=10_000, typed=True)  # ten thousand configs repeat the same few values; true, 1 and 1.0 are three
def shown(value: Any) -> str:
    """A config value as the command line writes it: a number, a text, true, false or null."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value).replace('"', "")


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Key → its last part, or the whole where that is not clear."""
    last = [key.rpartition(".")[2] for key in keys]
    return {key: short if last.count(short) == 1 else key for key, short in zip(keys, last, strict=True)}


def by_importance(keys: Iterable[str]) -> list[str]:
    """``keys`` in the order in which people ask for them: method first, then its rank, …"""
    place = {key: number for number, key in enumerate(keys)}
    return sorted(place, key=lambda key: (_first(key), key.count("."), place[key]))


def telling_keys(keys: Sequence[str], rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Of ``keys``, in their order, those that tell ``rows`` (key → value) apart where the ones before do not."""
    kept: list[str] = []
    parts: list[tuple[str | None, ...]] = [() for _ in rows]
    for key in keys:
        finer = [(*part, row.get(key)) for part, row in zip(parts, rows, strict=True)]
        if len(set(finer)) > len(set(parts)):
            kept.append(key)
            parts = finer
    return kept


def _first(key: str) -> int:
    names = ("peft", "peft.rank", "peft.*", "data", "backbone", "optim", "schedule", "trainer")
    group = key.partition(".")[0]
    wanted = key if key in names else "peft.*" if group == "peft" else group
    return names.index(wanted) if wanted in names else len(names)


def known_key(given: str, runs: Sequence[HasConfig], option: str) -> str:
    """The config key that ``given`` means: the whole, or its last part where only one key ends so.

    Raises:
        ConfigError: if there is none, or several.
    """
    return key_among(given, {key for run in runs for key in run.config}, option)


def key_among(given: str, keys: Collection[str], option: str) -> str:
    """The same among ``keys``."""
    if given in keys:
        return given
    ends = sorted(key for key in keys if key.endswith(f".{given}"))
    if len(ends) == 1:
        return ends[0]
    if ends:
        raise ConfigError(f"{option} {given}: several config keys end so: {', '.join(ends)}. Write the whole key.")
    near = nearest(given, keys) or nearest(given, {key.rpartition(".")[2] for key in keys})
    raise ConfigError(f"{option} {given}: no run has this config key.{near} Keys: {listed(keys, limit=80)}.")


def keep_where(runs: Sequence[Run], conditions: Sequence[str], option: str = "--where") -> list[Run]:
    """The runs whose config has ``key=value``, or one of ``key=value,value``, for each of ``conditions``.

    Raises:
        ConfigError: for a condition without '=', a key that no config has, or a value that no run has.
    """
    kept = list(runs)
    for condition in conditions:
        given, equals, value = condition.partition("=")
        if not equals:
            raise ConfigError(
                f"{option} {condition}: write key=value, for example peft.rank=2, or key=value,value for one of them."
            )
        key = known_key(given, runs, option)
        several = [] if value[:1] in ("[", "{") else value.split(",")
        matching = [run for run in kept if any(is_value(run.config.get(key), one) for one in (value, *several))]
        if not matching:
            values = {shown(run.config[key]) for run in kept if key in run.config}
            raise ConfigError(f"{option} {condition}: no run has this value. Values of {key}: {listed(values)}.")
        kept = matching
    return kept


def is_value(value: Any, text: str) -> bool:
    """Whether ``text`` means ``value``; numbers may be written in any way, ``1e-3`` or ``0.001``."""
    if shown(value).lower() == text.lower():
        return True
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(text) == value
        except ValueError:
            return False
    return False
