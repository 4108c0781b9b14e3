"""What ``peftlab check`` says of one config: what was chosen and set, and which run it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from peftlab.composition import composed, override_keys
from peftlab.config import GROUPS, NO_PART_OF_A_RUN, RunConfig
from peftlab.records import identity_tags
from peftlab.records.folder import RunFolder
from peftlab.records.identity import recorded, run_tags
from peftlab.reference import ABOUT, RECIPES, written


def facts(config: DictConfig, *, config_dir: str | None, config_name: str) -> Iterator[tuple[str, str]]:
    """The options that were chosen, and each key that has another value than they say, beside theirs.

    ``config``: as Hydra has composed it last.
    """
    choices = HydraConfig.get().runtime.choices
    options = {group: choices[group] for group in (*RECIPES, *ABOUT) if choices.get(group)}
    yield "chosen", " ".join(f"{group}={name}" for group, name in options.items())
    groups = [f"{group}={options[group]}" for group in (*GROUPS, "trainer") if group in options]
    own = dict(_flat(_plain(composed(groups, config_dir=config_dir, config_name=config_name))))
    title = "set"
    for key, value in _flat(_plain(config)):
        if key not in own or own[key] != value:
            left_open = str(own.get(key, "???")).startswith(("???", "${"))
            default = "" if left_open else f"    (not {written(own[key])})"
            yield title, f"{key}={written(value)}{default}"
            title = ""


def alike_lines(jobs: Sequence[tuple[Sequence[str], RunConfig, RunFolder]]) -> list[str]:
    """Which jobs of ``-m`` are one run, why, and what to do; ``jobs``: overrides, config and folder of each."""
    runs: dict[Path, list[int]] = {}
    for number, (_, _, folder) in enumerate(jobs):
        runs.setdefault(folder.path, []).append(number)
    found: dict[str, list[str]] = {}
    for numbers in runs.values():
        if len(numbers) > 1:
            found.setdefault(_why_alike([jobs[number] for number in numbers]), []).append(" = ".join(map(str, numbers)))
    return [f"the same run: jobs {_named(alike)}. {why}" for why, alike in found.items()]


def _named(alike: Sequence[str]) -> str:
    more = f", … ({len(alike) - NAMED} more)" if len(alike) > NAMED else ""
    return f"{', '.join(alike[:NAMED])}{more}"


NAMED = 6
"""Runs that are named of those that several jobs are."""


def _why_alike(jobs: Sequence[tuple[Sequence[str], RunConfig, RunFolder]]) -> str:
    said = [dict(zip(override_keys(overrides), overrides, strict=True)) for overrides, _, _ in jobs]
    keys = [key for key in said[0] if len({one.get(key) for one in said}) > 1]
    if not keys:
        return "They say the same: give each value once."
    beside = set(recorded(jobs[0][1])["bookkeeping"])
    names = " and ".join(keys)
    if not all(key in beside or key.partition(".")[0] in beside for key in keys):
        return f"The values of {names} mean the same: give one of them."
    several = (
        " Several loggers of one run: logger=several 'logger.loggers=[csv,tensorboard]'." if "logger" in keys else ""
    )
    return (
        f"{names} {'is' if len(keys) == 1 else 'are'} no part of a run's key, since no number depends on it: it is "
        f"trained once, as the first of them says. Give one value.{several}"
    )


def tag_lines(config: RunConfig) -> list[str]:
    """Of each change of numbers that is in the key: what is computed otherwise than by earlier versions."""
    since = {tag.name: tag.since for tag in identity_tags.TAGS}
    return [f"in the key, as earlier versions computed otherwise: {since[name]} ({name})" for name in run_tags(config)]


def _plain(config: DictConfig) -> dict[str, Any]:
    kept = [str(key) for key in config if key not in NO_PART_OF_A_RUN]
    found = OmegaConf.to_container(OmegaConf.masked_copy(config, kept), resolve=False)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and not prefix:
            yield from _flat(value, f"{name}.")
        else:
            yield f"{prefix}{name}", value
