"""A cluster of two small programs on the PATH: sbatch and squeue, which keep what they are told in files."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest

SBATCH = """#!/bin/bash
printf '%s\\n' "$@" > {place}/called.txt
number=$(( $(cat {place}/number.txt 2> /dev/null || echo 0) + 1 ))
for word; do
  case $word in
    --comment=*) comment=${{word#--comment=}} ;;
    --array=0-*) last=${{word#--array=0-}} ;;
  esac
done
[ -f {place}/refusal.txt ] && {{ cat {place}/refusal.txt >&2; exit 1; }}
echo "$number" > {place}/number.txt
for task in $(seq 0 "$last"); do echo "${{number}}_$task|PENDING|Priority||$comment" >> {place}/queue.txt; done
[ -f {place}/lost.txt ] && {{ cat {place}/lost.txt >&2; exit 1; }}
echo "$number"
"""
SQUEUE = """#!/bin/bash
[ -f {place}/down.txt ] && {{ cat {place}/down.txt >&2; exit 1; }}
cat {place}/queue.txt 2> /dev/null
exit 0
"""


@dataclass
class FakeSlurm:
    """What the two programs keep."""

    place: Path

    def says(self, name: str, text: str) -> None:
        """Let sbatch refuse (refusal), or lose its answer (lost); let squeue be out of order (down)."""
        (self.place / f"{name}.txt").write_text(text)

    def works(self) -> None:
        """As before."""
        for name in ("refusal", "lost", "down"):
            (self.place / f"{name}.txt").unlink(missing_ok=True)

    @property
    def queue(self) -> list[str]:
        """Lines of squeue."""
        file = self.place / "queue.txt"
        return file.read_text().splitlines() if file.exists() else []

    @queue.setter
    def queue(self, lines: list[str]) -> None:
        (self.place / "queue.txt").write_text("".join(f"{line}\n" for line in lines))

    @property
    def options(self) -> list[str]:
        """What sbatch was called with last."""
        return (self.place / "called.txt").read_text().splitlines()

    @property
    def arrays(self) -> int:
        """How often sbatch took a job."""
        file = self.place / "number.txt"
        return int(file.read_text()) if file.exists() else 0


@pytest.fixture
def slurm(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    place = tmp_path_factory.mktemp("slurm")
    programs = place / "programs"
    programs.mkdir()
    for name, text in (("sbatch", SBATCH), ("squeue", SQUEUE)):
        (programs / name).write_text(text.format(place=shlex.quote(str(place))))
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return FakeSlurm(place)
