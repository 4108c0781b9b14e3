"""Two DDP processes on CPUs: they train one model, evaluate every row once, and leave one record."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import TINY, Peftlab, run_folder


def test_two_processes(peftlab: Peftlab, reviews: Path) -> None:
    common = [*TINY, f"data.path={reviews}", "trainer.max_epochs=2", "data.eval_batch_size=3"]
    command = [
        sys.executable, "-m", "peftlab", "train", *common, "name=ddp", "data.batch_size=4",
        "trainer.devices=2", "trainer.strategy=ddp", "trainer.accelerator=cpu",
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads((run_folder("ddp") / "record.json").read_text())
    # 24 test rows and 10 validation rows over two ranks of three a batch: unequal batches, no row twice.
    assert facts["metrics"]["test"]["rows"] == 24
    assert [row["step"] for row in facts["history"]] == [11, 22]  # 86 rows, 2 · 4 a step
    assert sum(row["train_rows"] for row in facts["history"]) == 2 * 86
    # The same effective batch in one process sees the same rows in each step and ends close by.
    assert peftlab("train", *common, "name=one", "data.batch_size=8").status == 0
    one = json.loads((run_folder("one") / "record.json").read_text())
    assert [row["step"] for row in one["history"]] == [11, 22]
    assert abs(one["history"][1]["train/loss"] - facts["history"][1]["train/loss"]) < 0.02
    # And evaluating the trained adapter in one process gives the figures the two processes gave.
    again = json.loads(peftlab("evaluate", run_folder("ddp"), "--json").out)
    assert again["metrics"]["accuracy"] == facts["metrics"]["test"]["accuracy"]
    assert abs(again["metrics"]["loss"] - facts["metrics"]["test"]["loss"]) < 1e-6
