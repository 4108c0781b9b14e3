"""What a sweep costs beside its training: skipping what is finished, and starting a job.

    python benchmarks/sweep_overhead.py [--jobs 1000]

One run is trained; its record is copied to the keys of the other jobs. Then all of them are skipped, by
``peftlab train -m`` and by ``peftlab sweep``: the first time, when every job is composed, and again, when peftlab
remembers what they compose to. A start is the time from the launcher's decision to the first line of a job's work.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from peftlab.sweeps import processes
from peftlab.sweeps.job_spec import JobSpec

RUN = (
    "backbone=text_classifier", "logger=none", "data=text_files", "data.path=reviews.jsonl", "data.batch_size=8",
    "optim=sgd", "optim.lr=1", "peft=head", "trainer.max_epochs=1", "trainer.progress_bar=false",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--jobs", type=int, default=1000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["PEFTLAB_CACHE"] = f"{folder}/cache"
        write_reviews()
        finish(given.jobs, "many")
        finish(given.jobs, "declared")
        Path("declared.yaml").write_text(declaration(given.jobs))
        commands = {
            "peftlab train -m": ["train", "-m", *RUN, "name=many", f"seed=range(0,{given.jobs})"],
            "peftlab sweep": ["sweep", "declared.yaml"],
        }
        for name, command in commands.items():
            for attempt in ("the first time", "again", "once more"):
                took, out = timed(command)
                assert f"{given.jobs} of {given.jobs} jobs are finished already" in out, out[-2000:]
                print(f"{name}: {given.jobs} finished jobs skipped in {took} {attempt}", flush=True)
        server, warm = warm_starts()
        print(f"the fork server is ready after {server:.1f} s, once a sweep")
        print(f"warm start of a job: {statistics.median(warm):.3f} s (median of {len(warm)}; {spread(warm)})")
        cold = [cold_start() for _ in range(3)]
        print(f"cold start of a job: {statistics.median(cold):.1f} s (median of {len(cold)}; {spread(cold)})")
        print(f"ratio: {statistics.median(cold) / statistics.median(warm):.0f}")
    return 0


def write_reviews() -> None:
    """120 short labelled texts."""
    generator = random.Random(7)
    with Path("reviews.jsonl").open("w", encoding="utf-8") as file:
        for number in range(120):
            words = " ".join(
                generator.choice(("dull awful boring", "fine great moving")[number % 2].split()) for _ in "123"
            )
            file.write(json.dumps({"text": f"{words} {number}", "label": ("bad", "good")[number % 2]}) + "\n")


def finish(jobs: int, name: str) -> None:
    """Train the run of seed 0, and give its record to the other seeds."""
    from peftlab.composition import checked
    from peftlab.records.folder import RunFolder

    timed(["train", *RUN, f"name={name}", "seed=0", "force=true"])
    config = checked([*RUN, f"name={name}", "seed=0"])
    record = RunFolder.of(config).read_record()
    assert record is not None
    for seed in range(1, jobs):
        other = dataclasses.replace(config, seed=seed)
        folder = RunFolder.of(other)
        folder.write_config(other)
        folder.write_record(
            record | {"key": folder.key, "config": other.plain(), "seeds": record["seeds"] | {"seed": seed}}
        )


def declaration(jobs: int) -> str:
    """A declared sweep of the same runs."""
    return json.dumps(
        {
            "name": "declared", "title": "Many runs", "source": "a benchmark", "command": "peftlab sweep declared.yaml",
            "cost": "nothing", "selection": "Best on validation.", "overrides": RUN, "seeds": list(range(jobs)),
            "metric": "metrics.test.accuracy", "cells": [{"id": "head", "overrides": []}],
            "columns": [{"title": "accuracy", "value": "metrics.test.accuracy"}],
        }
    )  # fmt: skip


def timed(command: list[str]) -> tuple[str, str]:
    """Run a command; the time it took, in words, and what it printed."""
    began, before = time.monotonic(), os.times()
    done = subprocess.run([sys.executable, "-m", "peftlab", *command], capture_output=True, text=True, check=False)
    seconds, after = time.monotonic() - began, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    if done.returncode:
        raise SystemExit(f"{command[:2]} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return f"{seconds:.1f} s ({cpu:.1f} s of a CPU)", done.stdout


def measured(spec: JobSpec) -> None:
    """A job's process as the pool starts it, but for its work: that says when it begins."""
    import peftlab.sweeps.worker as worker

    worker.work = lambda _: print(f"at work {time.monotonic()}", flush=True) or 0  # type: ignore[assignment]
    processes._main(spec)


def warm_starts(count: int = 10) -> tuple[float, list[float]]:
    """Seconds until the server has forked its first job, then from each decision to the first line of the work."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(processes.PRELOADED)
    times = []
    for number in range(count + 1):
        log = Path(f"start{number}.txt")
        spec = JobSpec(
            values={}, folder="nowhere/key", arguments=("train",), threads=1, environment=dict(os.environ), log=str(log)
        )
        began = time.monotonic()
        process = context.Process(target=measured, args=(spec,))
        process.start()
        process.join()
        times.append(float(log.read_text().rpartition("at work ")[2]) - began)
    return times[0], times[1:]


def cold_start() -> float:
    """Seconds from starting a new interpreter to the same line."""
    code = "import peftlab.sweeps.worker, time; print(time.monotonic())"
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout) - began


def spread(values: list[float]) -> str:
    return f"{min(values):.3f} … {max(values):.3f}"


if __name__ == "__main__":
    sys.exit(main())
