"""What the tests of pool, launcher and cache share: small jobs, what they noted, waiting."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from peftlab.sweeps.jobs import Job

COMMON = (
    "backbone=text_classifier", "logger=none", "data=odd", "data.path=reviews.jsonl", "data.batch_size=8", "optim=sgd",
    "optim.lr=1", "peft=head", "trainer.max_epochs=1", "trainer.progress_bar=false", "name=odd",
)  # fmt: skip


def config_dir() -> str:
    """A folder that offers ``data=odd``."""
    folder = Path("mine/data")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "odd.yaml").write_text(
        "defaults: [text_files]\n_target_: tests.sweeps.odd_data.OddData\nmark: 0\nact: ''\nonce: false\nranks: null\n"
    )
    return str(Path("mine").resolve())


def job(number: int, *overrides: str) -> Job:
    return Job(f"job{number}", f"job {number}", (*COMMON, f"data.mark={number}", *overrides), config_dir())


def events() -> list[dict[str, str]]:
    """What :class:`tests.sweeps.odd_data.OddData` noted, in order."""
    path = Path("events.txt")
    lines = path.read_text().splitlines() if path.exists() else []
    return [dict(re.findall(r"(\w+) (\S+)", line)) for line in lines]


def until(condition: Callable[[], bool], what: str, seconds: float = 300) -> None:
    """Wait for ``condition``; a test that waits in vain fails, however fast the machine is."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"waited in vain until {what}")
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Whether the process runs; one that is dead and only not yet reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def group_members(group: int) -> list[int]:
    """Processes of a process group or session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if fields[0] != "Z" and group in (int(fields[2]), int(fields[3])):
            found.append(int(path.parent.name))
    return found
