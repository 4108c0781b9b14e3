"""Kill a declared sweep and its jobs at random moments, start it again until it is done, and compare.

    python benchmarks/torture_sweep.py FILE [setting=option | key=value …] [--jobs N] [--kills 3] [--seed 0]

The sweep runs undisturbed into one folder. Into another it runs while its launcher is killed at some random moments and
its jobs at as many others. There must be as many records in the end; no run may be touched again once it has a
record; and everything measured, but for time and memory, must be the same to the bit. The exit status says so.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TIMED = ("seconds", "per_second", "memory", "mib")
"""Keys that hold these words are times and memory."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--jobs", help="runs at a time")
    parser.add_argument("--kills", type=int, default=3, help="kills of the launcher, and as many of jobs")
    parser.add_argument("--seed", type=int, default=0, help="decides the moments and the victims")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave both folders there")
    given = parser.parse_intermixed_args()
    more = [*given.overrides, *(["--jobs", given.jobs] if given.jobs else [])]
    if given.keep is not None and (given.keep / "killed").exists():
        raise SystemExit(f"{given.keep / 'killed'} is there already; its records would be skipped.")
    with tempfile.TemporaryDirectory() if given.keep is None else contextlib.nullcontext(given.keep) as folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        calm = Sweep(given.file, more, Path(folder, "calm"))
        if calm.start().wait():
            raise SystemExit(f"the undisturbed sweep failed:\n{calm.log.read_text()[-3000:]}")
        seconds = time.monotonic() - began
        expected = calm.results()
        print(f"undisturbed: {len(expected)} records in {seconds:.0f} s", flush=True)
        killed = Sweep(given.file, more, Path(folder, "killed"))
        moments = random.Random(given.seed)
        kills = torture(killed, moments, given.kills, len(expected))
        found = killed.results()
        checks = {
            f"{2 * given.kills} kills came while the sweep ran": kills.count(",") + 1 == 2 * given.kills,
            f"{len(found)} records for {len(expected)} jobs": found.keys() == expected.keys(),
            f"{len(killed.stamps)} records were written once": len(killed.stamps) == len(found) and not killed.touched,
            "metrics, history and counts are the same to the bit": found == expected,
            "table.md is the same but for times and memory": same_table(calm.table(), killed.table()),
        }
        print(f"killed: {kills}")
        for text, right in checks.items():
            print(f"{'yes' if right else 'NO '}  {text}")
        for path in sorted(killed.touched):
            print(f"     written again: {path}")
        print(killed.table())
    return 0 if all(checks.values()) else 1


class Sweep:
    """The same sweep into one output folder, started as often as needed."""

    def __init__(self, file: str, more: list[str], output: Path) -> None:
        self.command = [sys.executable, "-m", "peftlab", "sweep", file, *more, f"output_dir={output}"]
        self.output = output
        self.log = output.with_suffix(".txt")
        self.stamps: dict[Path, tuple[int, int, str]] = {}
        self.touched: set[Path] = set()

    def start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(self.command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)

    def look(self) -> None:
        """Note new finished records, and those that are no longer what they were."""
        for path in self.output.glob("*/*/record.json"):
            try:
                stat, record = path.stat(), json.loads(path.read_text())
            except FileNotFoundError:
                continue
            if record["status"] == "finished":
                stamp = (stat.st_ino, stat.st_mtime_ns, record["ended_at"])
                if self.stamps.setdefault(path, stamp) != stamp:
                    self.touched.add(path)
            elif path in self.stamps:
                self.touched.add(path)

    def results(self) -> dict[str, Any]:
        """Key → what was measured, without times and memory. Keys of runs depend on no folder."""
        found = {}
        for path in self.output.glob("*/*/record.json"):
            record = json.loads(path.read_text())
            if record["status"] == "finished":
                parts = ("metrics", "history", "selection", "parameters", "forgetting", "seeds")
                measured = {part: untimed(record.get(part)) for part in parts}
                found[record["key"]] = (measured, (path.parent / "adapter.safetensors").read_bytes())
        return found

    def table(self) -> str:
        (path,) = self.output.glob("*/table.md")
        return path.read_text()

    def workers(self) -> list[int]:
        """First processes of the jobs at work: those that hold a run's lock."""
        found = []
        for lock in self.output.glob("*/*/.lock"):
            text = str(json.loads(lock.read_text() or "{}").get("pid"))
            if Path(f"/proc/{text}").exists() and not (lock.parent / "record.json").exists():
                found.append(int(text))
        return found


def torture(sweep: Sweep, moments: random.Random, count: int, jobs: int) -> str:
    """Run ``sweep`` to its end through ``count`` kills of the launcher and ``count`` kills of jobs, in random order.

    Each comes some seconds after a random number of the ``jobs`` runs has finished, so that no kill comes too late.
    """
    plan = ["launcher"] * count + ["job"] * count
    moments.shuffle(plan)
    after = sorted(moments.choices(range(max(1, jobs - 2)), k=len(plan)))
    done: list[str] = []
    launcher = sweep.start()
    for victim, records in zip(plan, after, strict=True):
        moment, struck = 0.0, False
        while not struck:
            if launcher.poll() is not None:
                if launcher.returncode == 0:
                    return ", ".join(done)  # it got through before
                launcher = sweep.start()  # a job was killed: the sweep said so, and goes on when it is started again
            sweep.look()
            time.sleep(0.05)
            if len(sweep.stamps) < records or not sweep.workers():
                continue
            moment = moment or time.monotonic() + moments.uniform(0.0, 10.0)
            if time.monotonic() < moment:
                continue
            if victim == "launcher":
                launcher.kill()
                launcher.wait()
                launcher, struck = sweep.start(), True
            else:
                with contextlib.suppress(IndexError, ProcessLookupError):  # it has just ended: the next one
                    os.kill(moments.choice(sweep.workers()), signal.SIGKILL)
                    struck = True
        done.append(victim)
    for _ in range(count + 2):
        while launcher.poll() is None:
            sweep.look()
            time.sleep(0.05)
        sweep.look()
        if launcher.returncode == 0:
            break
        launcher = sweep.start()
    else:
        raise SystemExit(f"the sweep does not end:\n{sweep.log.read_text()[-3000:]}")
    return ", ".join(done)


def untimed(value: Any) -> Any:
    """``value`` without the keys that hold times and memory."""
    if isinstance(value, dict):
        return {key: untimed(inner) for key, inner in value.items() if not any(word in key for word in TIMED)}
    return [untimed(inner) for inner in value] if isinstance(value, list) else value


def same_table(one: str, other: str) -> bool:
    """Whether two tables are the same but for columns of times and memory."""
    return untimed_table(one) == untimed_table(other)


def untimed_table(text: str) -> list[str]:
    lines, timed = [], set[int]()
    for line in text.splitlines():
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            timed = timed or {i for i, cell in enumerate(cells) if any(word in cell.lower() for word in TIMED)}
            line = "|".join("" if i in timed else cell for i, cell in enumerate(cells))
        lines.append(line)
    return lines


if __name__ == "__main__":
    sys.exit(main())
