"""``hydra/launcher=process``: the jobs of a multirun go to the pool that also runs declared sweeps.

Hydra's basic launcher runs all jobs in one process: random state, accelerator contexts and loggers leak from
job to job, and a rank that Lightning starts for DDP would become a second sweep controller. A job of ours
is a single run in a process of its own, so all its ranks see the same one config.

All jobs are composed and checked before the first one starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from peftlab.errors import ConfigError, SweepFailed, counted
from peftlab.metric_names import MetricName

if TYPE_CHECKING:
    from peftlab.config import RunConfig
    from peftlab.sweeps.jobs import Job, Outcome


class ProcessLauncher(Launcher):
    """Runs jobs through the pool; its arguments are those of :class:`~peftlab.sweeps.slots.PoolOptions`."""

    def __init__(
        self,
        n_parallel: int | None = 1,
        devices_per_job: int = 1,
        jobs_per_device: int | None = 1,
        threads_per_job: int | None = None,
        on_error: str = "continue",
        retries: int = 0,
        minutes_per_job: float | None = None,
    ) -> None:
        # Checked in setup: Hydra would wrap an error raised here in words of its own.
        self._given: dict[str, Any] = {
            "n_parallel": n_parallel,
            "devices_per_job": devices_per_job,
            "jobs_per_device": jobs_per_device,
            "threads_per_job": threads_per_job,
            "on_error": on_error,
            "retries": retries,
            "minutes_per_job": minutes_per_job,
        }
        self.soundness: Any = None
        self.started = False

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Remember what Hydra composed for the sweep as a whole, and check the options."""
        # Hydra imports this module for a single run, too, which needs nothing of sweeps.
        from peftlab.sweeps.slots import PoolOptions
        from peftlab.sweeps.soundness import Soundness

        self.config, self.soundness = config, Soundness()
        try:
            self.options = PoolOptions(**self._given)
        except ConfigError as error:
            raise ConfigError(f"hydra.launcher.{error}") from error

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Check all jobs, run those that are not finished, and sum up.

        Raises:
            PeftlabError: if jobs cannot run, naming each fault and who has it; nothing has run then.
            SweepFailed: if jobs failed, after the others have run.
        """
        from peftlab.sweeps import pool
        from peftlab.sweeps.jobs import FixedPlan

        jobs, configs = self.checked(job_overrides, initial_job_idx)
        self.started = True
        outcome = pool.run(FixedPlan(jobs), self.options)
        if outcome.failures:
            raise SweepFailed(_summary(outcome, len(jobs), pool.GO_ON))
        return [self._job_return(job, config, outcome) for job, config in zip(jobs, configs, strict=True)]

    def checked(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> tuple[list[Job], list[RunConfig]]:
        """The jobs, each composed and checked, and tried on the shapes of its model.

        Raises:
            PeftlabError: naming every fault, and the jobs that have it.
        """
        from peftlab.sweeps.cache import ConfigCache
        from peftlab.sweeps.faults import checked_jobs, job_name, titles
        from peftlab.sweeps.jobs import Job

        searched = self._searched()
        # Those of Hydra are for the sweep as a whole, but for where configs are searched.
        kept = [
            [o for o in overrides if not o.startswith(("hydra/", "hydra."))] + searched for overrides in job_overrides
        ]
        config_dir, config_name = self._config_dir(), str(self.config.hydra.job.config_name)
        jobs = [
            Job(str(number), title, tuple(overrides), config_dir, config_name)
            for number, (title, overrides) in enumerate(zip(titles(kept), kept, strict=True), start=initial_job_idx)
        ]
        with ConfigCache() as cache:
            configs = checked_jobs(cache, jobs)
        self.soundness.require([(job_name(job), config) for job, config in zip(jobs, configs, strict=True)], "job")
        return jobs, configs

    def _searched(self) -> list[str]:
        whole = [str(override) for override in self.config.hydra.overrides.hydra]
        return [override for override in whole if override.startswith("hydra.searchpath=")]

    def _config_dir(self) -> str | None:
        for source in self.config.hydra.runtime.config_sources:
            if source.provider == "command-line":  # --config-dir
                return str(Path(source.path).resolve())
        return None

    def _job_return(self, job: Job, config: RunConfig, outcome: Outcome) -> JobReturn:
        """What Hydra's sweepers look at; the value is the validation metric of the chosen epoch."""
        record = outcome.records.get(job.id)
        result = _Return(
            overrides=job.overrides,
            hydra_cfg=self.config,
            working_dir=str(Path.cwd()),
            task_name=str(self.config.hydra.job.name),
            status=JobStatus.COMPLETED,
        )
        result.config = config
        chosen = record["selection"] if record else {}  # of a run that diverged there is none
        result.return_value = next((value for name, value in chosen.items() if MetricName.from_history(name)), None)
        return result


class _Return(JobReturn):
    """Makes the DictConfig of a job only when somebody asks for it: for 1,000 jobs that takes half a minute."""

    config: RunConfig

    @property
    def cfg(self) -> DictConfig:
        """The job's config."""
        return OmegaConf.create(self.config.plain())

    @cfg.setter
    def cfg(self, value: object) -> None:
        """JobReturn's own __init__ sets it to None."""


def _summary(outcome: Outcome, total: int, go_on: str) -> str:
    lines = [f"{len(outcome.failures)} of {counted(total, 'job')} failed:"]
    for failure in outcome.failures.values():
        where = f", {failure.log}" if failure.log else ""
        lines.append(f"  {failure.job.title} ({failure.reason}{where})")
        lines += [f"    {line}" for line in failure.tail.splitlines()]
    return "\n".join([*lines, go_on])
