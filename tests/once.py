"""Two runs of a second, trained once a test process, for tests of what is asked of runs that are there."""

from __future__ import annotations

import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

from peftlab.cli import main
from tests.conftest import TINY, run_folder, write_reviews


@cache
def _trained() -> tempfile.TemporaryDirectory[str]:
    """A folder with the runs and, for as long as the process, their data."""
    folder = tempfile.TemporaryDirectory(prefix="two-runs")
    reviews = write_reviews(Path(folder.name), rows=120)
    here = Path.cwd()
    os.chdir(folder.name)
    try:
        for more in (["name=t"], ["name=u", "seed=1"]):
            assert main(["train", *TINY, f"data.path={reviews}", "trainer.max_epochs=1", *more]) == 0
    finally:
        os.chdir(here)
    return folder


def two_runs() -> dict[str, str]:
    """Copies of them, ``t`` and ``u``, below outputs/; name → folder."""
    shutil.copytree(Path(_trained().name) / "outputs", "outputs")
    return {name: str(run_folder(name)) for name in ("t", "u")}
