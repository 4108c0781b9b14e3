"""A command in a process of its own, which says what of the heavy libraries it has imported."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HEAVY = ("torch", "lightning", "transformers", "torchmetrics", "datasets", "bitsandbytes", "wandb", "peft", "optuna")
"""What takes long to import, torch first."""


@dataclass(frozen=True)
class Alone:
    """What became of it."""

    status: int
    out: str
    err: str
    heavy: list[str]
    """Of :data:`HEAVY`, what stood in ``sys.modules`` when the command had ended."""


def peftlab_alone(*arguments: object, **environment: str) -> Alone:
    """Run ``peftlab`` with ``arguments``."""
    code = (
        "import sys\nfrom peftlab.cli import main\n"
        "try:\n    status = main(sys.argv[1:])\n"
        "except SystemExit as end:\n    status = end.code or 0\n"
        f"print()\nprint(status, *(name for name in {HEAVY!r} if name in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), **environment},
    )  # fmt: skip
    out, _, last = done.stdout.rstrip("\n").rpartition("\n")
    status, *heavy = last.split()
    return Alone(int(status), out, done.stderr, heavy)
