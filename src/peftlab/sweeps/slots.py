"""How many jobs run at once, and on what: the pool's options, and the slots that they make of this machine.

Imports no torch: accelerators are counted through the environment and the driver's own tool.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import dataclass
from typing import Any

from peftlab import machine
from peftlab.errors import ConfigError, nearest


@dataclass(frozen=True)
class PoolOptions:
    """What the pool can be told; ``None`` means: as the machine is.

    Raises:
        ConfigError: naming the option that is not allowed.
    """

    n_parallel: int | None = None
    """Jobs at a time; None: ``jobs_per_device`` for each ``devices_per_job`` GPUs, or one for so many CPUs."""
    devices_per_job: int = 1
    """GPUs of each job, its own (CUDA_VISIBLE_DEVICES); without GPUs, CPUs that a job is counted with."""
    jobs_per_device: int | None = 1
    """Jobs that share a GPU at a time; None: as many as fit into its memory, by what the first of them took."""
    threads_per_job: int | None = None
    """CPU threads of each job that does not set trainer.threads; None: OMP_NUM_THREADS, or CPUs / n_parallel."""
    on_error: str = "continue"
    """continue: the other jobs run all the same; stop: none is started after the first failure."""
    retries: int = 0
    """How often a job that crashed or was killed is started again. A config that cannot work is not."""

    minutes_per_job: float | None = None
    """How long an attempt may take until it is killed, and has failed; None: without end."""

    def __post_init__(self) -> None:
        if self.minutes_per_job is not None and not (
            isinstance(self.minutes_per_job, int | float) and 0 < self.minutes_per_job < math.inf
        ):
            raise ConfigError(
                f"minutes_per_job={self.minutes_per_job!r} is not allowed: it must be a number greater than 0, or null."
            )
        _require_whole("n_parallel", self.n_parallel, least=1, none=True)
        _require_whole("devices_per_job", self.devices_per_job, least=1)
        _require_whole("jobs_per_device", self.jobs_per_device, least=1, none=True)
        _require_whole("threads_per_job", self.threads_per_job, least=1, none=True)
        _require_whole("retries", self.retries, least=0)
        if self.on_error not in ("continue", "stop"):
            raise ConfigError(
                f"on_error={self.on_error!r} is not allowed: it must be continue or stop."
                f"{nearest(str(self.on_error), ('continue', 'stop'))}"
            )


@dataclass(frozen=True)
class Slot:
    """A place for one job at a time."""

    number: int
    gpus: tuple[str, ...]
    """As CUDA_VISIBLE_DEVICES names them; none on a machine without GPUs."""

    @property
    def title(self) -> str:
        """What the progress table calls it."""
        return f"GPU {', '.join(self.gpus)}" if self.gpus else f"slot {self.number + 1}"


@dataclass(frozen=True)
class Machine:
    """The slots, and the threads of a job in each."""

    slots: tuple[Slot, ...]
    threads: int

    @classmethod
    def divided(cls, options: PoolOptions) -> Machine:
        """This machine, divided as ``options`` say.

        Raises:
            ConfigError: if it has too few GPUs.
        """
        gpus, cpus = machine.visible_gpus(), machine.cpus()
        each = options.devices_per_job
        if gpus:
            groups = len(gpus) // each
            if groups == 0:
                raise ConfigError(f"devices_per_job={each}: this machine has only {len(gpus)} GPUs.")
            sharing = options.jobs_per_device or max(1, cpus // groups)  # a job keeps a CPU busy too
            most = groups * sharing
            if (options.n_parallel or 1) > most:
                shared = f" and jobs_per_device={options.jobs_per_device}" if options.jobs_per_device != 1 else ""
                raise ConfigError(
                    f"n_parallel={options.n_parallel} with devices_per_job={each}{shared}: there are {len(gpus)} GPUs, "
                    f"so at most n_parallel={most}; more jobs share a GPU with a greater jobs_per_device."
                )
        else:
            if (options.jobs_per_device or 1) > 1:
                raise ConfigError(
                    f"jobs_per_device={options.jobs_per_device}: there is no GPU here that jobs could share. "
                    "How many run at once on the CPU says n_parallel (peftlab sweep --jobs)."
                )
            groups, most = 1, max(1, cpus // each)
        count = options.n_parallel or most
        of_group = (i % groups for i in range(count)) if gpus else (0 for _ in range(count))
        slots = tuple(Slot(i, tuple(gpus[g * each : (g + 1) * each])) for i, g in enumerate(of_group))
        return cls(slots, options.threads_per_job or _threads_by_environment() or max(1, cpus // count))

    @property
    def title(self) -> str:
        """``2 at a time, 1 CPU thread each``; sums may differ in the last bit between thread counts."""
        threads = f"{self.threads} CPU thread{'s' if self.threads > 1 else ''} each (where trainer.threads is null)"
        places = Counter(slot.title for slot in self.slots)
        named = (title if count == 1 else f"{title} ({count} jobs)" for title, count in places.items())
        devices = f", on {', '.join(named)}" if self.slots[0].gpus else ""
        return f"{len(self.slots)} at a time, {threads}{devices}"


def _threads_by_environment() -> int | None:
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() and int(given) > 0 else None


def _require_whole(name: str, value: Any, *, least: int, none: bool = False) -> None:
    if none and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        allowed = f"a whole number, at least {least}{', or null' if none else ''}"
        raise ConfigError(f"{name}={value!r} is not allowed: it must be {allowed}.")
