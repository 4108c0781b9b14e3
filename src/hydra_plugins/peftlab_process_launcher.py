"""``hydra/launcher=process``: the jobs of a multirun go to the pool that also runs declared sweeps.

Hydra's basic launcher runs all jobs in one process: random state, accelerator contexts and loggers leak from
job to job, and a rank that Lightning starts for DDP would become a second sweep controller. A job of ours
is a single run in a process of its own, so all its ranks see the same one config.

All jobs are composed and checked before the first one starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from peftlab.config import RunConfig
from peftlab.errors import ConfigError, PeftlabError, SweepFailed
from peftlab.runs.folder import RunFolder
from peftlab.sweeps import pool
from peftlab.sweeps.jobs import FixedPlan, Job, Outcome
from peftlab.sweeps.memo import Memo
from peftlab.sweeps.slots import PoolOptions


class ProcessLauncher(Launcher):
    """Runs jobs through the pool; its arguments are those of :class:`~peftlab.sweeps.slots.PoolOptions`."""

    def __init__(
        self,
        n_parallel: int | None = 1,
        devices_per_job: int = 1,
        threads_per_job: int | None = None,
        on_error: str = "continue",
        retries: int = 0,
    ) -> None:
        # Checked in setup: Hydra would wrap an error raised here in words of its own.
        self._given = (n_parallel, devices_per_job, threads_per_job, on_error, retries)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Remember what Hydra composed for the sweep as a whole, and check the options."""
        self.config = config
        try:
            self.options = PoolOptions(*self._given)
        except ConfigError as error:
            raise ConfigError(f"hydra.launcher.{error}") from error

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Check all jobs, run those that are not finished, and sum up.

        Raises:
            PeftlabError: if a job's config is wrong, naming the job; nothing has run then.
            SweepFailed: if jobs failed, after the others have run.
        """
        jobs, configs = self.checked(job_overrides, initial_job_idx)
        outcome = pool.run(FixedPlan(jobs), self.options)
        if outcome.failures:
            raise SweepFailed(_summary(outcome, len(jobs)))
        return [self._job_return(job, config, outcome) for job, config in zip(jobs, configs, strict=True)]

    def checked(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> tuple[list[Job], list[RunConfig]]:
        """The jobs, each composed and checked: a typo in job 30 must not show after a night.

        Raises:
            PeftlabError: naming the first job that cannot run.
        """
        kept = [self._kept(overrides) for overrides in job_overrides]
        common = set.intersection(*map(set, kept)) if len(kept) > 1 else set()
        jobs, configs = [], []
        with Memo() as memo:
            for number, overrides in enumerate(kept, start=initial_job_idx):
                title = " ".join(o for o in overrides if o not in common) or f"job {number}"
                job = Job(str(number), title, tuple(overrides), self._config_dir(), self._config_name())
                try:
                    config = memo.config(job)
                    RunFolder.of(config)
                except PeftlabError as error:
                    words = " ".join(filter_overrides(overrides))
                    raise type(error)(f"job {number} ({words}): {error}") from error
                jobs.append(job)
                configs.append(config)
        return jobs, configs

    def _kept(self, overrides: Sequence[str]) -> list[str]:
        """A job's own overrides: those of Hydra are for the sweep, but for where configs are searched."""
        whole = [str(override) for override in self.config.hydra.overrides.hydra]
        searched = [override for override in whole if override.startswith("hydra.searchpath=")]
        return [o for o in overrides if not o.startswith(("hydra/", "hydra."))] + searched

    def _config_dir(self) -> str | None:
        for source in self.config.hydra.runtime.config_sources:
            if source.provider == "command-line":  # --config-dir
                return str(Path(source.path).resolve())
        return None

    def _config_name(self) -> str:
        return str(self.config.hydra.job.config_name)

    def _job_return(self, job: Job, config: RunConfig, outcome: Outcome) -> JobReturn:
        """What Hydra's sweepers look at; the value is the validation metric of the chosen epoch."""
        selection = outcome.records[job.id]["selection"]
        result = JobReturn(
            overrides=job.overrides,
            cfg=OmegaConf.create(config.plain()),
            hydra_cfg=self.config,
            working_dir=str(Path.cwd()),
            task_name=str(self.config.hydra.job.name),
            status=JobStatus.COMPLETED,
        )
        result.return_value = selection[f"validation/{config.trainer.monitor}"]
        return result


def _summary(outcome: Outcome, total: int) -> str:
    lines = [f"{len(outcome.failures)} of {total} jobs failed:"]
    for failure in outcome.failures.values():
        where = f", {failure.log}" if failure.log else ""
        lines.append(f"  {failure.job.title} ({failure.reason}{where})")
        lines += [f"    {line}" for line in failure.tail.splitlines()]
    return "\n".join([*lines, pool.GO_ON])
