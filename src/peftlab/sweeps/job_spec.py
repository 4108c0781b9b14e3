"""What a launcher tells a job's process, and what the process answers by its exit status. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

IN_USE = 75
"""Exit status of a job whose run another process holds (EX_TEMPFAIL)."""

OUT_OF_MEMORY = 77
"""Exit status of a job for which its GPU's memory was too small, perhaps because others had their part of it."""


@dataclass(frozen=True)
class JobSpec:
    """What a job's process is told."""

    values: dict[str, Any]
    """The checked config as plain containers."""
    folder: str
    """The run folder that the launcher expects the config to have."""
    arguments: tuple[str, ...]
    """What would follow ``peftlab`` on the command line: other ranks of a DDP job are started with it."""
    threads: int
    environment: dict[str, str]
    log: str
