"""How long `peftlab report`, `runs` and `diff` take over many runs, and how much memory a report needs.

    python benchmarks/report_10000.py [RUNS]        10,000 runs, a few seeds each

Their records are those of one small run that is trained first, with other ranks, rates, seeds and results: whatever
records hold today, checksums included, they hold. Prints seconds of each whole command and the report's peak MiB. Exits
with 1 above 10 s or 1,024 MiB of the report, 3 s of `runs` or half a second of `diff` (for 10,000 runs).
"""

from __future__ import annotations

import copy
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from peftlab.records.integrity import record_text

SEEDS = 5
SECONDS, MIB = 10.0, 1024.0
RUNS_SECONDS, DIFF_SECONDS = 3.0, 0.5


def a_record(folder: Path) -> dict[str, Any]:
    """What a run of ten epochs and eight classes leaves."""
    rows = [json.dumps({"text": f"word{number % 8} and more", "label": f"class {number % 8}"}) for number in range(80)]
    (folder / "few.jsonl").write_text("\n".join(rows), encoding="utf-8")
    command = [sys.executable, "-m", "peftlab", "train", "data=text_files", f"data.path={folder}/few.jsonl"]
    command += ["backbone=text_classifier", "peft=lora", "trainer=cpu", "trainer.max_epochs=10", "logger=none"]
    command += ["trainer.progress_bar=false", f"output_dir={folder}/one"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    record: dict[str, Any] = json.loads(next((folder / "one").glob("*/*/record.json")).read_text(encoding="utf-8"))
    return record


def write_records(folder: Path, runs: int, model: dict[str, Any]) -> int:
    """Write runs like ``model``; return the bytes of one record."""
    generator = random.Random(0)
    size = 0
    for number in range(runs):
        seed, group = number % SEEDS, number // SEEDS
        made = copy.deepcopy(model)
        made["key"], made["config"]["seed"], made["seeds"]["seed"] = f"{number:012x}", seed, seed
        made["config"]["peft"] |= {"rank": 2 ** (group % 8), "alpha": float(2 ** (group // 8 % 8))}
        made["config"]["optim"]["lr"] = 1e-4 * (1 + group // 64)
        for split in ("validation", "test"):
            made["metrics"][split]["accuracy"] = 0.8 + 0.01 * (group % 8) + generator.gauss(0, 0.01)
        made["parameters"]["trainable"] = 1000 * 2 ** (group % 8)
        text = record_text(made)
        size = len(text)
        path = folder / "many" / made["key"]
        path.mkdir(parents=True)
        (path / "record.json").write_text(text, encoding="utf-8")
    return size


def main() -> int:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with tempfile.TemporaryDirectory() as scratch:
        size = write_records(Path(scratch), runs, a_record(Path(scratch)))
        command = [sys.executable, "-m", "peftlab", "report", f"{scratch}/many", "--to", f"{scratch}/report"]
        command += ["--baseline", "rank=1 alpha=1 lr=0.0001"]
        began = time.perf_counter()
        report = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(report.pid, 0)  # of this one alone, and of its readers
        seconds = time.perf_counter() - began
        report.returncode = os.waitstatus_to_exitcode(status)
        if report.returncode:
            return 1
        mib, cpu = used.ru_maxrss / 1024, used.ru_utime + used.ru_stime
        page = (Path(scratch) / "report" / "report.html").stat().st_size
        listed = _seconds(["runs", f"{scratch}/many"])
        compared = _seconds(["diff", f"{scratch}/many/{0:012x}", f"{scratch}/many/{SEEDS:012x}"])
    took = f"{seconds:.1f} s ({cpu:.1f} s of CPU)"
    print(f"{runs:,} records of {size:,} bytes: {took}, peak {mib:.0f} MiB, page {page / 2**20:.1f} MiB")
    print(f"peftlab runs: {listed:.2f} s; peftlab diff: {compared:.2f} s")
    slow = seconds > SECONDS or mib > MIB or listed > RUNS_SECONDS or compared > DIFF_SECONDS
    return int(runs <= 10_000 and slow)


def _seconds(words: list[str]) -> float:
    """Of a whole command, the better of two calls."""
    found = []
    for _ in range(2):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "peftlab", *words], check=True, stdout=subprocess.DEVNULL)
        found.append(time.perf_counter() - began)
    return min(found)


if __name__ == "__main__":
    sys.exit(main())
