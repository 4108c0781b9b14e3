"""Composing many jobs that differ in single values only. Imports no torch.

Hydra spends its time on the defaults list: which files, in which order. Jobs of a sweep mostly share that and differ
in values (``peft.rank=4``, ``seed=2``). So what decides the files is composed once, and each job's values are then put
into a copy, in their order, as Hydra itself would have done last. Whatever does not fit into this picture is left to
Hydra as a whole; a test compares both for every kind of override.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from functools import lru_cache

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from peftlab.composition import composed
from peftlab.config import GROUPS, NO_PART_OF_A_RUN, RunConfig
from peftlab.hydra_changes import SELECTORS, opened, require_known
from peftlab.sweeps.jobs import Job

_CHOICES = "|".join([*GROUPS, *SELECTORS, "trainer", r"hydra/\w+"])
_CHOICE = re.compile(rf"[+~]*({_CHOICES})(=|@|$)")
"""Chooses a file; Hydra does that before it sets any value."""
_PLAIN = "|".join(name for name in RunConfig.__dataclass_fields__ if name not in GROUPS and name != "trainer")
_VALUE = re.compile(rf"((?!hydra\.)[A-Za-z_]\w*(\.\w+)+|{_PLAIN})=")
"""Changes a value that is there."""


class Templates:
    """Compositions without values of their own, by what decides them."""

    def __init__(self) -> None:
        self._found: dict[tuple[object, ...], tuple[DictConfig, DictConfig]] = {}
        self._current: tuple[tuple[object, ...], int] | None = None
        """Whose choices Hydra's global state holds, as which object."""

    def composed(self, job: Job) -> tuple[DictConfig, DictConfig]:
        """The run's part of what ``job`` composes to, and a whole composition of the same files and choices.

        Raises:
            ConfigError, or an error of Hydra or OmegaConf: if it does not compose.
        """
        structure, values = divided(job.overrides)
        key = (structure, job.config_dir, job.config_name)
        if key not in self._found:
            whole = composed(structure, config_dir=job.config_dir, config_name=job.config_name)
            self._found[key] = _run_part(whole), whole
        template, whole = self._found[key]
        if self._current != (key, id(HydraConfig.instance().cfg)):
            HydraConfig.instance().set_config(whole)  # for ${hydra:runtime.choices.…}
            self._current = (key, id(HydraConfig.instance().cfg))
        config = copy.deepcopy(template)
        added = False
        for value in map(_parsed, values):
            added = opened(value, config) or added
            OmegaConf.update(config, value.key_or_group, value.value(), merge=True)
        if added:
            require_known(config)
        return config, whole


def _run_part(whole: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(whole, [str(name) for name in whole if name not in NO_PART_OF_A_RUN])


def divided(overrides: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Overrides that decide the structure (files, added and deleted keys), and values that can be set after them.

    The order of the values among themselves is kept, and no value is moved behind an added or deleted key.
    """
    kinds = ["file" if _CHOICE.match(o) else "value" if _VALUE.match(o) else "other" for o in overrides]
    last = max((i for i, kind in enumerate(kinds) if kind == "other"), default=-1)
    late = [i > last and kind == "value" for i, kind in enumerate(kinds)]
    return (
        tuple(o for o, is_late in zip(overrides, late, strict=True) if not is_late),
        tuple(o for o, is_late in zip(overrides, late, strict=True) if is_late),
    )


@lru_cache(maxsize=100_000)
def _parsed(override: str) -> Override:
    return OverridesParser.create().parse_override(override)
