"""The Trainer as a run's config asks for it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from peftlab.objectives.base import objective
from peftlab.training.config import TrainerConfig, monitored
from peftlab.training.trainer import build_trainer


def test_a_login_node_of_a_cluster_is_no_reason_for_a_hint(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There ``srun`` is on the PATH, and Lightning warns at every start that it was not used; a warning fails here."""
    program = scratch / "srun"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(scratch), prepend=os.pathsep)
    config = TrainerConfig(progress_bar=False)
    figure = monitored(config, objective("classification"))
    build_trainer(config, figure, folder=scratch, checkpoints=scratch, logger=None, rows_per_step=1)
