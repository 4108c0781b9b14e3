"""A sweep file and what is typed behind it: settings, seeds, overrides for all jobs. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from peftlab.composition import parse
from peftlab.errors import ConfigError, PeftlabError
from peftlab.sweeps.declaration import Sweep, key_of
from peftlab.sweeps.jobs import Job, Outcome
from peftlab.sweeps.manifest import write_manifest
from peftlab.sweeps.plan import DeclaredPlan
from peftlab.sweeps.reading import read_sweep


class Call:
    """A sweep file with what was typed behind it, and a further folder of configs.

    Raises:
        ConfigError: for a file that declares no sweep, or overrides that do not go with it.
    """

    def __init__(self, file: Path, overrides: Sequence[str], config_dir: str | None = None) -> None:
        parse(overrides)
        if config_dir is not None and not Path(config_dir).is_dir():
            raise ConfigError(f"--config-dir {config_dir}: there is no such folder.")
        self.config_dir = None if config_dir is None else str(Path(config_dir).resolve())
        self.file = file
        self.overrides = tuple(overrides)
        declared = read_sweep(file)
        keys = [key_of(entry) for entry in overrides]
        for entry, key in zip(overrides, keys, strict=True):
            if key in ("name", "seed"):
                raise ConfigError(
                    f"{entry}: the name and the seeds of a sweep stand in {file}; seeds=0,1 takes other seeds."
                )
            if key.partition(".")[0] == "hydra":
                raise ConfigError(
                    f"{entry} is for -m; of a declared sweep, options say how jobs run: --jobs, --devices-per-job, "
                    "--threads-per-job, --on-error, --retries, --minutes-per-job."
                )
            if key in ("seeds", *declared.settings) and keys.count(key) > 1:
                raise ConfigError(f"{key} is given {keys.count(key)} times: give it once.")
        self.sweep = _with_seeds(declared, [entry for entry in overrides if entry.startswith("seeds=")])
        settings = {key for key in keys if key in declared.settings}
        self.chosen = dict(entry.split("=", 1) for entry in overrides if entry.partition("=")[0] in settings)
        self.more = [entry for entry, key in zip(overrides, keys, strict=True) if key not in {*settings, "seeds"}]

    def plan(self, *, reading: bool, slots: int = 1) -> DeclaredPlan:
        """A plan that has handed nothing out yet."""
        kind = DeclaredPlan if reading else _Noting
        plan = kind(self.sweep, self.chosen, self.more, slots=slots, reading=reading, config_dir=self.config_dir)
        if isinstance(plan, _Noting):
            plan.file = self.file
        return plan


class _Noting(DeclaredPlan):
    """Keeps sweep.json true while the sweep runs, so that a report can be made at any time."""

    file = Path()
    _noted = (0.0, -1)

    def ready(self, outcome: Outcome) -> Sequence[Job]:
        """As the plan says; sweep.json is written if something has ended, at most once a second."""
        jobs = super().ready(outcome)
        now, ended = time.monotonic(), len(outcome.records) + len(outcome.failures)
        if ended != self._noted[1] and now - self._noted[0] > 1:
            with suppress(PeftlabError):  # a full disk fails the jobs that need it; this file is written again
                write_manifest(self, outcome, self.file)
            self._noted = (now, ended)
        return jobs


def _with_seeds(sweep: Sweep, given: Sequence[str]) -> Sweep:
    if not given:
        return sweep
    text = given[-1].partition("=")[2].strip("[]")
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        seeds = []
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ConfigError(f"{given[-1]}: give different whole numbers from 0 up, separated by commas, as seeds=0,1.")
    return replace(sweep, seeds=seeds)
