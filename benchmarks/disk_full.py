"""The disk is full at the moment when a run, a sweep or a report opens a certain file: what is lost, and what is said.

    python benchmarks/disk_full.py [--only run/record.json]

Everything lies on a small file system of its own (tmpfs, for which one must be root). When a process of the command is
about to write the file, what is left of it is filled up. The command must then name a file and say why, without a
traceback; what an earlier run has left must be whole, to the byte; and when there is room again the same command must
end as one that nothing has disturbed. Prints a table in Markdown; the exit status says so. About 3 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

SIZE = "48m"
COMMON = (
    "backbone=text_classifier", "logger=none", "data=text_files", "data.path=rows.csv", "data.batch_size=8",
    "optim=sgd", "optim.lr=0.5", "peft=lora", "peft.targets=[hidden]", "trainer.max_epochs=2",
    "trainer.progress_bar=false", "trainer.threads=1", "trainer.checkpoint_every_n_steps=3",
)  # fmt: skip
RUN = ("train", *COMMON, "name=run", "seed=1")
SWEEP = ("sweep", "declared.yaml", "--jobs", "1")
REPORT = ("report", "outputs/small", "--to", "page")
MOMENTS: dict[str, tuple[tuple[str, ...], str]] = {
    "run/config.yaml": (RUN, r"/run/.*/\.config\.yaml"),
    "run/token cache": (RUN, r"cache/.*ids\.npy"),
    "run/checkpoint inside an epoch": (RUN, r"\.epoch-1-batch-"),
    "run/best.ckpt": (RUN, r"\.best\.ckpt"),
    "run/last.ckpt": (RUN, r"\.last\.ckpt"),
    "run/metrics.csv": (RUN, r"/run/.*metrics\.csv"),
    "run/adapter.safetensors": (RUN, r"\.adapter\.safetensors"),
    "run/curves.png": (RUN, r"curves\.png"),
    "run/predictions.parquet": (RUN, r"\.predictions\.parquet"),
    "run/record.json": (RUN, r"/run/.*\.record\.json"),
    "sweep/a job's log": (SWEEP, r"/small/\.logs/.*\.txt$"),
    "sweep/a job's record": (SWEEP, r"/small/.*\.record\.json"),
    "sweep/sweep.json": (SWEEP, r"\.sweep\.json"),
    "sweep/table.csv": (SWEEP, r"table\.csv"),
    "report/report.csv": (REPORT, r"page/.*\.csv"),
    "report/a figure": (REPORT, r"page/.*\.(png|svg|pdf)"),
    "report/report.html": (REPORT, r"page/.*\.html"),
}
FILLS = """
import os, re, sys

def fill_when_opened(pattern, ballast, said):
    pattern, armed = re.compile(pattern), [True]

    def look(event, values):
        if not armed or event != "open" or not isinstance(values[0], str) or not isinstance(values[2], int):
            return
        if not values[2] & (os.O_WRONLY | os.O_RDWR) or not pattern.search(values[0]):
            return
        armed.clear()
        try:
            note = os.open(said, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:  # another process of the command
            return
        os.write(note, values[0].encode())
        os.close(note)
        file = os.open(ballast, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        for size in (1 << 20, 4096, 1):
            try:
                while os.write(file, bytes(size)):
                    pass
            except OSError:
                pass
        os.close(file)

    sys.addaudithook(look)

if os.environ.get("FULL_AT"):
    fill_when_opened(*(os.environ[name] for name in ("FULL_AT", "FULL_BALLAST", "FULL_SAID")))
"""
"""sitecustomize.py of every process of a command: fills the disk up, once, when a file is opened to be written."""


@dataclass
class Disk:
    """A small file system with inputs, an earlier run and a finished sweep on it, and room beside it."""

    place: Path
    beside: Path
    expected: dict[tuple[str, ...], Any] = field(default_factory=dict)

    def call(self, words: tuple[str, ...], full_at: str = "") -> subprocess.CompletedProcess[str]:
        said = self.beside / "said"
        said.unlink(missing_ok=True)
        more = {
            "FULL_AT": full_at, "FULL_BALLAST": str(self.place / "ballast"), "FULL_SAID": str(said),
            "PEFTLAB_CACHE": str(self.place / "cache"), "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(self.beside / "hook"), *sys.path[1:]]),
        }  # fmt: skip
        return subprocess.run(
            [sys.executable, "-m", "peftlab", *words], cwd=self.place, env=os.environ | more, capture_output=True,
            text=True, timeout=300, check=False,
        )  # fmt: skip

    def filled_at(self) -> str:
        """The file whose opening has filled it."""
        said = self.beside / "said"
        return said.read_text() if said.exists() else ""

    def make_room(self) -> None:
        (self.place / "ballast").unlink(missing_ok=True)


@contextlib.contextmanager
def disk() -> Iterator[Disk]:
    """A mounted file system.

    Raises:
        OSError: if it cannot be mounted here.
    """
    with tempfile.TemporaryDirectory() as folder:
        place, beside = Path(folder, "disk"), Path(folder, "beside")
        for path in (place, beside, beside / "hook"):
            path.mkdir()
        (beside / "hook" / "sitecustomize.py").write_text(FILLS)
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(place)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if mounted.returncode:
            raise OSError(f"a file system of its own cannot be mounted: {mounted.stderr.strip()}")
        try:
            write_inputs(place)
            yield Disk(place, beside)
        finally:
            subprocess.run(["umount", "--lazy", str(place)], check=False)


def write_inputs(place: Path) -> None:
    lines = [f"a {('dull', 'fine')[n % 2]} film number {n},{('bad', 'good')[n % 2]}" for n in range(120)]
    (place / "rows.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    declared = {
        "name": "small", "title": "A small sweep", "source": "a test", "command": "none", "cost": "seconds",
        "selection": "Best on validation.", "overrides": list(COMMON), "seeds": [0, 1], "expected": [],
        "metric": "metrics.test.accuracy", "cells": [{"id": "one", "overrides": ["peft.rank=1"], "curve": True}],
        "columns": [{"title": "accuracy", "value": "metrics.test.accuracy"}],
    }  # fmt: skip
    (place / "declared.yaml").write_text(yaml.safe_dump(declared))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default=",".join(MOMENTS))
    given = parser.parse_args()
    wrong, names = 0, given.only.split(",")
    print("| full when this file is written | what is said | earlier results | afterwards |")
    print("| --- | --- | --- | --- |", flush=True)
    with disk() as one:
        for name in names:
            found = tried(one, name)
            print(f"| {name} | {' | '.join(word.replace('|', '/') for word in found)} |", flush=True)
            wrong += any("**" in word for word in found)
    print(f"\n{len(names) - wrong} of {len(names)} moments: named, nothing lost, and gone on from.")
    return 1 if wrong else 0


def tried(one: Disk, name: str) -> tuple[str, str, str]:
    """One moment: what was said, whether earlier results are whole, and what the same command came to afterwards."""
    words, pattern = MOMENTS[name]
    expected = undisturbed(one, words)
    earlier = hashes(one.place / "outputs" / "earlier")
    shutil.rmtree(one.place / "cache", ignore_errors=True)
    kept = hashes(one.place / "outputs" / "small") if words is REPORT else {}
    failed = one.call(words, full_at=pattern)
    said = last_line(failed.stderr)
    at = one.filled_at()
    if not at:
        said = f"**never opened** {said}"
    elif failed.returncode == 0:
        said = f"**ended well**: {last_line(failed.stdout)}"
    elif "Traceback" in failed.stderr + failed.stdout:
        said = f"**traceback** {said}"
    elif "No space left on device" not in failed.stderr or not any(
        name in failed.stderr + failed.stdout for name in wanted(at)
    ):
        said = f"**not named: {wanted(at)}** {failed.stderr.strip()[-300:]!r}"
    whole = earlier == hashes(one.place / "outputs" / "earlier") and all(
        hashes(one.place / "outputs" / "small").get(path) == digest for path, digest in kept.items()
    )
    one.make_room()
    again = one.call(words)
    after = "the same result" if again.returncode == 0 and outcome(one, words) == expected else "**other**"
    if again.returncode:
        after = f"**status {again.returncode}** {last_line(again.stderr)}"
    return said.replace(f"{one.place}/", ""), "whole" if whole else "**changed**", after


def wanted(at: str) -> list[str]:
    """Names that people know the file ``at`` by, which is a temporary one perhaps; of caches the folder."""
    path = Path(at)
    match = re.fullmatch(r"\.(.+)\.[^.]+", path.name)
    return ["cache/tokens"] if "/cache/" in at else [match[1] if match else path.name]


def last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""


def undisturbed(one: Disk, words: tuple[str, ...]) -> Any:
    """What the command comes to with room; what it has made is taken away, and what it reads is there."""
    if not (one.place / "outputs" / "earlier").exists():
        call_with_room(one, ("train", *COMMON, "name=earlier"))
    if words is REPORT and not (one.place / "outputs" / "small" / "table.csv").exists():
        call_with_room(one, SWEEP)
    made = one.place / {RUN: "outputs/run", SWEEP: "outputs/small", REPORT: "page"}[words]
    if words not in one.expected:
        shutil.rmtree(made, ignore_errors=True)
        call_with_room(one, words)
        one.expected[words] = outcome(one, words)
    shutil.rmtree(made, ignore_errors=True)
    return one.expected[words]


def call_with_room(one: Disk, words: tuple[str, ...]) -> None:
    done = one.call(words)
    assert done.returncode == 0, done.stdout + done.stderr


def outcome(one: Disk, words: tuple[str, ...]) -> Any:
    """What must be the same: figures and adapters of runs, the cells of a table, the files of a report."""
    if words is REPORT:
        files = sorted(path.name for path in (one.place / "page").iterdir())
        return files, (one.place / "page" / "report.csv").read_text()
    runs = sorted((one.place / "outputs" / ("run" if words is RUN else "small")).glob("*/record.json"))
    records = [json.loads(path.read_text()) for path in runs]
    found: list[Any] = [
        (record["key"], record["status"], record["metrics"], record["files"]["adapter.safetensors"]["sha256"])
        for record in records
    ]
    if words is SWEEP:
        with (one.place / "outputs/small/table.csv").open() as file:
            found += list(csv.DictReader(file))
    return found


def hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file below ``folder``."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


if __name__ == "__main__":
    sys.exit(main())
