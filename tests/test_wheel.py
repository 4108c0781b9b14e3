"""The built wheel carries configs and launcher, and runs from an empty folder."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from tests.conftest import REPOSITORY, TINY


def test_the_wheel_runs_from_an_empty_folder(scratch: Path, reviews: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(scratch), str(REPOSITORY)]
    built = subprocess.run(build, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = scratch.glob("peftlab-*.whl")
    installed = scratch / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    assert (installed / "peftlab/conf/train.yaml").exists()
    assert (installed / "hydra_plugins/peftlab_process_launcher.py").exists()
    assert (installed / "peftlab/cluster/default.yaml").exists()
    templates = Path("peftlab/report/render/templates")
    there = {path.name for path in (installed / templates).iterdir()}
    assert {path.name for path in (REPOSITORY / "src" / templates).iterdir()} <= there
    assert {"page.html", "page.css", "page.js", "table.tex"} <= there
    assert not (installed / "hydra_plugins/__init__.py").exists()
    empty = scratch / "empty"
    empty.mkdir()
    start = (
        f"import sys; sys.path.insert(0, {str(installed)!r}); import peftlab.shipped as c; "
        f"assert c.config_folder().is_relative_to({str(installed)!r}); from peftlab.cli import main; sys.exit(main())"
    )
    arguments = ["train", *TINY, f"data.path={reviews}", "trainer.max_epochs=1", "name=wheel"]
    done = subprocess.run(
        [sys.executable, "-c", start, *arguments], cwd=empty, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert list(empty.glob("outputs/wheel/*/record.json"))
