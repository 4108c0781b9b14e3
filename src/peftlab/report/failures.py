"""Runs without a result: why, and the end of their logs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from peftlab.report.groups import Group

TAIL_LINES = 12


@dataclass(frozen=True)
class Failure:
    """A run without a result."""

    title: str
    reason: str
    log: str | None
    """The file, if there is one."""
    tail: str
    """Last lines of its log."""


def failures_of(groups: Sequence[Group]) -> list[Failure]:
    """The runs of ``groups`` that have no result, and what their logs end with."""
    found = []
    for group in groups:
        by_seed = {str(run.seed): run for run in group.failed}
        for seed, why in group.missing.items():
            run = by_seed.get(seed)
            beside = f"{run.folder.rpartition('/')[0]}/.logs/{run.key}.txt" if run else None
            log = next((log for log in (group.logs.get(seed), beside) if log and Path(log).is_file()), None)
            reason = " ".join(why.split())
            found.append(Failure(f"{group.label}, seed {seed}", reason, log, _tail(log)))
    return found


def _tail(log: str | None) -> str:
    if log is None:
        return ""
    try:
        with Path(log).open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - 8192))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:  # gone or not ours to read
        return ""
    return "\n".join(line.rstrip() for line in text.strip().splitlines()[-TAIL_LINES:])
