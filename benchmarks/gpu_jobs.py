"""Many short jobs of a sweep on one GPU: alone, together and killed, the same bits; and how much faster together.

    python benchmarks/gpu_jobs.py [--jobs 16] [--together 16] [--reviews 1000] [--tiny] [--out FILE]
                                  [--data WORD …] [--tokenizer FOLDER]

Both sweeps fork their jobs from a warm server and train the same runs, LoRA on a BERT of MiniLM's size from random
weights. Then the first run is trained alone, killed with SIGKILL at three moments, and resumed. A line of JSON each.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MINILM = "hidden_size:384,num_hidden_layers:6,num_attention_heads:12,intermediate_size:1536"
TINY = "hidden_size:32,num_hidden_layers:2,num_attention_heads:4,intermediate_size:64"
KILLS = 3


def main() -> int:
    given = _arguments()
    out = given.out.resolve() if given.out else None
    words = words_of(given)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        found: dict[str, Any] = {}

        def say(**known: Any) -> None:
            found.update(known)
            print(json.dumps(known), flush=True)
            if out is not None:
                out.write_text(json.dumps(found, indent=2) + "\n")

        say(machine=machine(words))
        adapters = []
        for name, at_once in (("one_by_one", 1), ("together", given.together)):
            known, hashes = sweep(name, words, given.jobs, at_once)
            adapters.append(hashes)
            say(**{name: known})
        same = sum(one == other for one, other in zip(*adapters, strict=True))
        ratio = found["one_by_one"]["seconds"] / found["together"]["seconds"]
        say(ratio=round(ratio, 2), same_bits=f"{same} of {given.jobs} jobs")
        killed, adapter = kill_and_resume(words, random.Random(0))
        say(killed=killed, same_bits_as_undisturbed=adapter == adapters[0][0])
    return 0 if same == given.jobs and adapter == adapters[0][0] else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--jobs", type=int, default=16)
    parser.add_argument("--together", type=int, default=16)
    parser.add_argument("--reviews", type=int, default=1000)
    parser.add_argument("--tiny", action="store_true", help="rehearse on the CPU")
    parser.add_argument("--data", nargs="+", default=["data=imdb_packaged"])
    parser.add_argument("--tokenizer", help="folder; by default the packaged MiniLM's")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def words_of(given: argparse.Namespace) -> list[str]:
    """The config of a job, as one types it."""
    from gpu import packaged_tokenizer

    architecture = f"model_type:bert,vocab_size:30522,{TINY if given.tiny else MINILM}"
    return [
        *given.data, "backbone=tiny", "~backbone.architecture", f"+backbone.architecture={{{architecture}}}",
        f"backbone.tokenizer={given.tokenizer or packaged_tokenizer()}", "backbone.dropout=0.1", "peft=lora",
        f"data.limit_train={given.reviews}", "data.limit_val=64", "data.limit_test=64", "data.max_length=128",
        "data.batch_size=16", "optim.lr=1e-3", "logger=none", f"trainer={'cpu' if given.tiny else 'gpu'}",
        "trainer.max_epochs=2", "trainer.progress_bar=false", *(["trainer.threads=1"] if given.tiny else []),
    ]  # fmt: skip


def machine(words: list[str]) -> dict[str, Any]:
    """One step of training, before anything is timed: caches are filled, and the record says where."""
    peftlab("train", *words, "name=first", "data.limit_train=64", "trainer.max_epochs=1")
    record = json.loads(next(Path("outputs/first").glob("*/record.json")).read_text())
    return {"hardware": record["hardware"], "versions": record["versions"]}


def sweep(name: str, words: list[str], jobs: int, at_once: int) -> tuple[dict[str, Any], list[str]]:
    """A declared sweep over seeds; its wall-clock seconds, and the hashes of its adapters."""
    declared = {
        "name": name, "title": name, "source": "a benchmark", "overrides": words, "seeds": list(range(jobs)),
        "metric": "metrics.test.accuracy", "cells": [{"id": "lora", "overrides": []}],
        "columns": [{"title": "accuracy", "value": "metrics.test.accuracy"}],
    }  # fmt: skip
    Path(f"{name}.yaml").write_text(json.dumps(declared))
    began = time.monotonic()
    peftlab("sweep", f"{name}.yaml", "--jobs" if "trainer=cpu" in words else "--jobs-per-device", str(at_once))
    seconds = time.monotonic() - began
    records = [json.loads(path.read_text()) for path in Path("outputs", name).glob("*/record.json")]
    records.sort(key=lambda record: record["seeds"]["seed"])
    assert len(records) == jobs, f"{len(records)} records of {jobs} jobs"
    known = {
        "seconds": round(seconds, 1),
        "jobs_at_once": at_once,
        "training_samples_s_of_a_job": round(records[0]["timing"]["train_samples_per_second"], 1),
    }
    return known, [record["files"]["adapter.safetensors"]["sha256"] for record in records]


def kill_and_resume(words: list[str], moments: random.Random) -> tuple[int, str]:
    """Train seed 0 alone, killed at random moments after a checkpoint; how often, and the adapter's hash."""
    command = [sys.executable, "-m", "peftlab", "train", *words, "name=killed", "seed=0"]
    command.append("trainer.checkpoint_every_n_steps=5")
    killed = 0
    for number in range(KILLS):
        with Path(f"killed{number}.txt").open("w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
            before = checkpoints()
            while process.poll() is None and checkpoints() <= before:
                time.sleep(0.02)
            time.sleep(moments.random() * 0.5)
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.wait()
                killed += 1
    peftlab(*command[3:])
    record = json.loads(next(Path("outputs/killed").glob("*/record.json")).read_text())
    return killed, record["files"]["adapter.safetensors"]["sha256"]


def checkpoints() -> tuple[int, ...]:
    """The latest place of which the run has a checkpoint: the numbers in its name."""
    names = [path.name for path in Path("outputs/killed").rglob("epoch-*.ckpt")]
    return max((tuple(int(number) for number in re.findall(r"\d+", name)) for name in names), default=())


def peftlab(*command: str) -> None:
    done = subprocess.run([sys.executable, "-m", "peftlab", *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command[:2]} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")


if __name__ == "__main__":
    sys.exit(main())
