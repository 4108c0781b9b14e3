"""How long `peftlab report`, `runs` and `diff` take over many runs, and how much memory a report needs.

    python benchmarks/report_10000.py [RUNS]        10,000 made-up records of real size, a few seeds each

Prints seconds of each whole command and the report's peak MiB. Exits with 1 above 10 s or 1,024 MiB of the report, 3 s
of `runs` or half a second of `diff` (for 10,000 runs).
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.report.made_up import record

SEEDS = 5
SECONDS, MIB = 10.0, 1024.0
RUNS_SECONDS, DIFF_SECONDS = 3.0, 0.5


def write_records(folder: Path, runs: int) -> int:
    """Write them; return the bytes of one."""
    generator = random.Random(0)
    size = 0
    padding = {f"package-{number}": f"1.{number}.0" for number in range(20)}
    for number in range(runs):
        seed, group = number % SEEDS, number // SEEDS
        rank, alpha, rate = 2 ** (group % 8), 2 ** (group // 8 % 8), 1e-4 * (1 + group // 64)
        accuracy = 0.8 + 0.01 * (group % 8) + generator.gauss(0, 0.01)
        made = record(
            accuracy, key=f"{number:012x}", seed=seed, trainable=1000 * rank, versions=padding,
            keys={"peft.rank": rank, "peft.alpha": float(alpha), "optim.lr": rate, "data.path": "reviews.jsonl"},
        )  # fmt: skip
        per_class = {"accuracy": [0.5] * 8, "f1": [0.5] * 8}
        epochs = (
            dict(made["history"][0], **{"epoch": epoch, "validation/per_class": per_class}) for epoch in range(10)
        )
        made["history"] = list(epochs)
        text = json.dumps(made, indent=2)
        size = len(text)
        path = folder / "many" / made["key"]
        path.mkdir(parents=True)
        (path / "record.json").write_text(text, encoding="utf-8")
    return size


def main() -> int:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with tempfile.TemporaryDirectory() as scratch:
        size = write_records(Path(scratch), runs)
        command = [sys.executable, "-m", "peftlab", "report", f"{scratch}/many", "--to", f"{scratch}/report"]
        command += ["--baseline", "rank=1 alpha=1 lr=0.0001"]
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - began
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
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
