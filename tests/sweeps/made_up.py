"""A pool that runs nothing: jobs get made-up records, in any order."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from peftlab.sweeps.declaration import Sweep
from peftlab.sweeps.jobs import Failure, Job, Outcome
from peftlab.sweeps.plan import DeclaredPlan
from peftlab.sweeps.reading import read_sweep

BASE: dict[str, Any] = {
    "name": "made_up",
    "title": "A made-up sweep",
    "source": "a test",
    "command": "peftlab sweep sweep.yaml",
    "cost": "nothing",
    "selection": "Best on validation.",
    "overrides": ["backbone=tiny", "data=text_files", "data.path=reviews.jsonl", "logger=none"],
    "seeds": [0, 1, 2],
    "metric": "metrics.test.accuracy",
    "columns": [
        {"title": "test accuracy", "value": "metrics.test.accuracy"},
        {"title": "trainable", "value": "parameters.trainable", "format": "count"},
    ],
}


def declare(**changes: Any) -> Path:
    path = Path("sweep.yaml")
    path.write_text(yaml.safe_dump({**BASE, **changes}, sort_keys=False))
    return path


def declared(**changes: Any) -> Sweep:
    return read_sweep(declare(**changes))


def record(
    job: Job, validation: Sequence[float], *, test: float = 0.5, loss: float = 1.0, best: bool = True
) -> dict[str, Any]:
    """A finished record with one validation accuracy an epoch; ``best`` keeps the best of them."""
    history = [
        {"epoch": epoch, "train/loss": loss, "validation/accuracy": value, "validation/loss": 1 - value}
        for epoch, value in enumerate(validation)
    ]
    kept = max(range(len(validation)), key=lambda epoch: validation[epoch]) if best else len(validation) - 1
    return {
        "status": "finished",
        "key": key_of(job),
        "history": history,
        "selection": {"epoch": kept},
        "metrics": {
            "train": {"accuracy": 0.9},
            "validation": {"accuracy": validation[kept], "loss": 1 - validation[kept]},
            "test": {"accuracy": test},
        },
        "parameters": {"trainable": 100},
        "data": {"source": "nowhere", "train_kind": "train", "test_kind": "hold-out"},
    }


def key_of(job: Job) -> str:
    return hashlib.sha256("\n".join(job.overrides).encode()).hexdigest()[:12]


class Killed(Exception):
    """The launcher has died."""


def play(
    plan: DeclaredPlan,
    run: Callable[[Job], dict[str, Any] | str],
    *,
    slots: int = 1000,
    order: Callable[[list[Job]], int] = lambda waiting: 0,
    ran: list[Job] | None = None,
) -> Outcome:
    """What ``pool.run`` does, without processes: ``run`` gives a job's record, or why it failed.

    Args:
        plan: decides.
        run: makes the record; may raise :class:`Killed`.
        slots: jobs at a time.
        order: which of the running jobs ends next.
        ran: the jobs that were started, in their order.
    """
    outcome = Outcome()
    waiting: list[Job] = []
    running: list[Job] = []
    started = ran if ran is not None else []
    while True:
        while jobs := plan.ready(outcome):
            waiting += jobs
        while waiting and len(running) < slots:
            running.append(waiting.pop(0))
            started.append(running[-1])
        if not running:
            break
        job = running.pop(order(running))
        result = run(job)
        if isinstance(result, str):
            outcome.failures[job.id] = Failure(job, result)
        else:
            outcome.records[job.id] = result
            outcome.folders[job.id] = Path("outputs", "made_up", result["key"])
    for failure in plan.blocked(outcome):
        outcome.failures.setdefault(failure.job.id, failure)
    return outcome


def value(job: Job, key: str) -> str:
    """What an override of ``job`` sets ``key`` to, the last one counting."""
    return [entry.partition("=")[2] for entry in job.overrides if entry.partition("=")[0] == key][-1]


def write_epochs(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """metrics.csv as a run leaves it after some epochs."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
