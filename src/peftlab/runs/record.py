"""The parts of record.json, as plain containers."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from peftlab.config import RunConfig
from peftlab.data.base import Splits
from peftlab.data.module import content_hash, split_hashes
from peftlab.errors import counted
from peftlab.metric_names import UNDEFINED, MetricName, task_figure
from peftlab.objectives.base import Learned
from peftlab.peft.legacy import FORMAT
from peftlab.records import environment, identity_tags
from peftlab.records.folder import SCHEMA_VERSION, RunFolder
from peftlab.records.identity import run_tags
from peftlab.runs.assemble import Assembled
from peftlab.training.module import TrainingModule
from peftlab.training.ranks import world_size


def head(config: RunConfig, folder: RunFolder, argv: list[str], status: str, *, said: dict[str, Any]) -> dict[str, Any]:
    """What ran, where and with what; the same for finished and failed runs.

    Args:
        config: the run's.
        folder: the run's.
        argv: what was typed.
        status: ``finished``, ``failed`` or ``interrupted``.
        said: when the run began, under their names in the record: what :func:`peftlab.records.identity.recorded` said,
            and of a run that goes on with another what that was.
    """
    order_seed = config.data.order_seed
    return {
        "schema_version": SCHEMA_VERSION,
        "status": status,
        "name": config.name,
        "key": folder.key,
        identity_tags.FIELD: list(run_tags(config)),
        "config": config.plain(),
        **said,
        "argv": argv,
        "ended_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": environment.git_state(),
        **({"snapshot": copied["hash"]} if (copied := environment.snapshot()) is not None else {}),
        "versions": environment.versions(),
        "hardware": environment.hardware(),
        "processes": world_size(config.trainer),
        "seeds": {
            "seed": config.seed,
            "order_seed": config.seed if order_seed is None else order_seed,
            "split_seed": config.data.split_seed,
        },
    }


def data_facts(
    config: RunConfig, splits: Splits, tokens: Mapping[str, Mapping[str, int]] | None = None
) -> dict[str, Any]:
    """Where the texts came from, how many there are, and hashes: of all of them, and of the rows of each split.

    ``tokens``: what is counted of them, by split.

    The hash of the test rows says whether two runs may be compared: an ablation of the training rows keeps them.
    """
    several = splits.provenance.get("tasks", {})
    tasks = {
        task.name: several.get(task.name, {}) | {"split_hashes": split_hashes(splits, task)} for task in splits.tasks
    }
    return (
        splits.provenance
        | ({"tasks": tasks} if tasks else {})
        | ({"tokens": tokens} if tokens else {})
        | {
            "rows": {"train": len(splits.train), "validation": len(splits.validation), "test": len(splits.test)},
            "train_kind": splits.train_kind,
            "test_kind": splits.test_kind,
            "label_names": list(splits.label_names),
            "max_length": config.data.max_length,
            "hash": splits.hash_as_loaded or content_hash(splits),
            "split_hashes": split_hashes(splits),
        }
    )


def metrics(module: TrainingModule, row: Mapping[str, Any], splits: Splits) -> dict[str, Any]:
    """Metrics of the chosen ``row`` of the history on train and validation, and of the one test."""
    objective, names = module.objective, splits.label_names
    kept = (*objective.every_epoch(), UNDEFINED)
    found: dict[str, Any] = {
        split: {name: row[column] for name in kept if (column := MetricName(split, name).in_history) in row}
        for split in ("train", "validation")
    }
    for split, figures in found.items() if splits.tasks else ():
        figures["tasks"] = {
            task.name: _of_task(row, split, task.name, objective.tasks().get(task.name, objective))
            for task in splits.tasks
        }
    details = {name: row[MetricName("validation", name).in_history] for name in objective.details}
    found["validation"] = objective.named(found["validation"] | details, names)
    found["test"] = objective.named(module.test_metrics, names)
    return found


def _of_task(row: Mapping[str, Any], split: str, task: str, objective: Learned) -> dict[str, Any]:
    """What the history's ``row`` has of one task: figures, why some are undefined, and details if it has own."""
    columns = {
        name: MetricName(split, name, task).in_history
        for name in (*objective.every_epoch(), "rows", *objective.details)
    }
    found = {name: row[column] for name, column in columns.items() if name not in objective.details or column in row}
    undefined = row.get(MetricName(split, UNDEFINED).in_history, {})
    reasons = {
        name: undefined[task_figure(task, name)]
        for name in objective.every_epoch()
        if task_figure(task, name) in undefined
    }
    return found | ({UNDEFINED: reasons} if reasons else {})


def timing(
    module: TrainingModule,
    test_rows: int,
    test_seconds: float,
    *,
    resumed: bool,
    began: float,
    trunk_seconds: float | None = None,
) -> dict[str, Any]:
    """Seconds and texts per second; training time is that of all attempts, without validation.

    ``began``: when the work began, in seconds since the epoch. ``trunk_seconds``: what computing the frozen trunk took
    before, or reading it; None: there was none.
    """
    train_seconds = sum(row["train_seconds"] for row in module.history)
    train_rows = sum(row["train_rows"] for row in module.history)
    first_step = module.first_step_at
    return {
        "train_seconds": train_seconds,
        "train_samples_per_second": train_rows / max(train_seconds, 1e-9),
        "test_seconds": test_seconds,
        "evaluation_samples_per_second": test_rows / max(test_seconds, 1e-9),
        "start_to_first_step_seconds": None if first_step is None else first_step - began,
        "total_seconds": time.time() - began,
        "resumed": resumed,
    } | ({} if trunk_seconds is None else {"trunk_seconds": trunk_seconds})


def device_hours(train_seconds: float, *, processes: int, threads: int, on_gpu: bool) -> dict[str, Any]:
    """GPU-hours of a run on GPUs, core-hours of one on CPUs; the other is None. ``hours_of`` says what is counted.

    Args:
        train_seconds: of training, of all attempts. What a killed attempt did after its last checkpoint is not known,
            and start, validation and test are no training.
        processes: each with a device of its own.
        threads: of each process, on a CPU.
        on_gpu: whether the devices are GPUs.
    """
    hours = train_seconds * processes / 3600
    if on_gpu:
        return {"gpu_hours": hours, "cpu_hours": None, "hours_of": f"training, on {counted(processes, 'GPU')}"}
    cores = f"training, in {processes} process{'es' * (processes > 1)} of {counted(threads, 'thread')}"
    return {"gpu_hours": None, "cpu_hours": hours * threads, "hours_of": cores, "threads": threads}


def file_facts(folder: RunFolder, names: Iterable[str]) -> dict[str, dict[str, str | int]]:
    """Size and sha256 of files of the run's folder."""
    contents = {name: (folder.path / name).read_bytes() for name in names}
    return {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in contents.items()}


def adapter_facts(config: RunConfig, splits: Splits, assembled: Assembled, folder: RunFolder) -> dict[str, Any]:
    """adapter.json: what the adapter belongs to."""
    plain = config.plain()
    learned = config.data.what_is_learned()
    tasks = [
        {"name": task.name, "classes": [task.first, task.stop]}
        | ({"objective": task.objective} if learned.tasks() else {})
        for task in splits.tasks
    ]
    return {
        "format": FORMAT,
        "run": folder.key,
        "method": config.peft.name,
        "peft": plain["peft"],
        "backbone": plain["backbone"],
        "backbone_fingerprint": assembled.fingerprint,
        "train_head": config.trains_head,
        "objective": learned.name,
        "label_names": list(splits.label_names),
        "max_length": config.data.max_length,
        "truncation": config.data.truncation,
    } | ({"tasks": tasks} if tasks else {})
