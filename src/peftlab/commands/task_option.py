"""``--task NAME``: which task of a run on data of several tasks is meant."""

from __future__ import annotations

from peftlab.config import RunConfig
from peftlab.errors import ConfigError, nearest


def require_task(config: RunConfig, run: str, task: str | None) -> None:
    """Raise ConfigError unless ``task`` names a task of a run of several tasks, or is None for a run of one.

    Args:
        config: the run's.
        run: its folder as typed, for messages.
        task: what was given.
    """
    tasks = config.data.task_names()
    there_are = f"Its tasks are: {', '.join(tasks)}."
    if not tasks and task is not None:
        raise ConfigError(f"--task {task}: the run in '{run}' was trained on one task. Leave --task out.")
    if tasks and task is None:
        raise ConfigError(f"the run in '{run}' was trained on several tasks: say which with --task NAME. {there_are}")
    if tasks and task not in tasks:
        raise ConfigError(f"--task {task}: the run in '{run}' has no such task.{nearest(str(task), tasks)} {there_are}")
