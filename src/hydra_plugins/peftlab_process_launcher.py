"""``hydra/launcher=process``: each job of a multirun is a fresh ``peftlab train`` process.

Hydra's basic launcher runs all jobs in one process: random state, accelerator contexts and loggers leak from
job to job, and a rank that Lightning starts for DDP would become a second sweep controller. A job of ours
is a single run of its own, so all its ranks see the same one config.

All jobs are composed and checked before the first one starts.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from peftlab.config import check
from peftlab.errors import ConfigError, RunError
from peftlab.runs.folder import RunFolder


class ProcessLauncher(Launcher):
    """Runs jobs one after the other, each in an interpreter of its own."""

    def __init__(self, on_error: str = "continue") -> None:
        if on_error not in ("continue", "stop"):
            raise ConfigError(f"hydra.launcher.on_error={on_error!r} is not allowed: it must be continue or stop.")
        self.on_error = on_error

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Remember what Hydra composed for the sweep as a whole."""
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Check all jobs, run those that are not finished, and sum up.

        Raises:
            ConfigError: if a job's config is wrong; nothing has run then.
            RunError: if jobs failed, after the others have run.
        """
        jobs = [self._checked(list(overrides), initial_job_idx + i) for i, overrides in enumerate(job_overrides)]
        returns: list[JobReturn] = []
        failed: list[str] = []
        for number, (overrides, config, folder) in enumerate(jobs, start=1):
            result = JobReturn(overrides=overrides, cfg=config, hydra_cfg=self.config)
            print(
                f"[{number}/{len(jobs)}] {' '.join(filter_overrides(overrides))}  →  {folder.path}",
                flush=True,
            )
            began = time.monotonic()
            status = subprocess.run(self._command(overrides), check=False).returncode
            result.status = JobStatus.FAILED if status else JobStatus.COMPLETED
            result._return_value = None if status == 0 else RunError(f"exit status {status}")
            if status:
                failed.append(f"  [{number}] {' '.join(filter_overrides(overrides))}: exit status {status}")
            print(
                f"[{number}/{len(jobs)}] {'failed' if status else 'done'} after {time.monotonic() - began:.0f} s",
                flush=True,
            )
            returns.append(result)
            if status < 0 or (status and self.on_error == "stop"):
                break
        if failed:
            left = len(jobs) - len(returns)
            raise RunError(
                f"{len(failed)} of {len(jobs)} jobs failed{f', {left} not started' if left else ''}:\n"
                + "\n".join(failed)
                + "\nThe same command again skips what is finished and runs the rest."
            )
        return returns

    def _checked(self, overrides: list[str], number: int) -> tuple[list[str], DictConfig, RunFolder]:
        """Compose one job and check it: a typo in job 30 must not show after a night."""
        config = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(config):
            config.hydra.job.id = str(number)
            config.hydra.job.num = number
        HydraConfig.instance().set_config(config)
        try:
            checked = check(config)
        except ConfigError as error:
            raise ConfigError(f"job {number} ({' '.join(filter_overrides(overrides))}): {error}") from error
        return overrides, config, RunFolder.of(checked)

    def _command(self, overrides: list[str]) -> list[str]:
        command = [
            sys.executable,
            "-m",
            "peftlab",
            "train",
            "--config-name",
            str(self.config.hydra.job.config_name),
        ]
        for source in self.config.hydra.runtime.config_sources:
            if source.provider == "command-line":  # --config-dir
                command += ["--config-dir", str(Path(source.path).resolve())]
        kept: list[Any] = [o for o in overrides if not o.startswith("hydra/") and not o.startswith("hydra.")]
        return [*command, *kept]
