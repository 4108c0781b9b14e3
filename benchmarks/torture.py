"""Kill a run at random moments, start it again until it is finished, and compare it with an undisturbed one.

    python benchmarks/torture.py [--rounds 5] [--seed 0]

Adapter file, metrics and history must be the same to the bit in every round; the exit status says so.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUN = (
    "backbone=tiny", "logger=csv", "data=imdb_packaged", "data.limit_train=1000", "data.limit_val=200",
    "data.limit_test=200", "data.max_length=64", "trainer.max_epochs=6", "peft.dropout=0.1", "backbone.dropout=0.1",
    "schedule=cosine", "optim.lr=5e-3",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    moments = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        start(folder, "undisturbed").wait()
        seconds = time.monotonic() - began
        expected = outcome(folder, "undisturbed")
        same = 0
        for number in range(given.rounds):
            kills = killed_until_finished(folder, f"round{number}", moments, seconds)
            equal = outcome(folder, f"round{number}") == expected
            same += equal
            print(f"round {number}: killed {kills} times, {'the same bits' if equal else 'DIFFERENT'}", flush=True)
    print(f"{same} of {given.rounds} rounds ended as the undisturbed run")
    return 0 if same == given.rounds else 1


def start(folder: str, name: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "peftlab", "train", *RUN, f"output_dir={folder}/{name}", "name=t"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def killed_until_finished(folder: str, name: str, moments: random.Random, seconds: float) -> int:
    """Kill at a random moment of the ``seconds`` that a run takes, until one gets through."""
    for kills in range(100):
        process = start(folder, name)
        try:
            status = process.wait(timeout=moments.uniform(0.4, 1.1) * seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            continue
        if status:
            raise SystemExit(f"{name} failed with status {status} after {kills} kills")
        return kills
    raise SystemExit(f"{name} did not finish")


def outcome(folder: str, name: str) -> tuple[bytes, object]:
    (record,) = Path(folder).glob(f"{name}/t/*/record.json")
    facts = json.loads(record.read_text())
    history = [{k: v for k, v in row.items() if k != "train_seconds"} for row in facts["history"]]
    return (record.parent / "adapter.safetensors").read_bytes(), (facts["metrics"], history)


if __name__ == "__main__":
    sys.exit(main())
