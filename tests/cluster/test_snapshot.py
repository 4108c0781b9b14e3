"""The copy of the code that workers run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from peftlab.cluster import snapshot
from peftlab.records import environment
from peftlab.shipped import config_folder
from tests.conftest import REPOSITORY


def test_a_copy_runs_in_the_place_of_the_code_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("cells: []\n")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "x.yaml").write_text("a: 1\n")
    files = {"sweep.yaml": tmp_path / "mine.yaml", "config_dir": tmp_path / "configs"}
    made = snapshot.take(tmp_path / "place", files)
    assert (made / "sweep.yaml").read_text() == "cells: []\n"
    assert (made / "config_dir" / "x.yaml").read_text() == "a: 1\n"
    for path in ["train.yaml", "peft/lora.yaml"]:
        assert (made / "code/peftlab/conf" / path).read_bytes() == (config_folder() / path).read_bytes()
    code = (
        "import json, peftlab.cli, hydra_plugins.peftlab_process_launcher as launcher; "
        "from peftlab.records import environment; from peftlab.shipped import config_folder; "
        "print(json.dumps([peftlab.cli.__file__, launcher.__file__, str(config_folder()), environment.snapshot(), "
        "environment.git_state()]))"
    )
    path = os.pathsep.join([str(made / "code"), str(REPOSITORY / "src")])
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=True,
        timeout=120,
    )  # fmt: skip
    *places, said, git = json.loads(done.stdout)
    assert all(Path(place).is_relative_to(made / "code") for place in places)
    assert said["hash"] == made.name
    assert git == said["git"] == environment.git_state()
    assert environment.snapshot() is None


def test_the_same_is_copied_once_and_other_files_are_another_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "src" / "peftlab"
    package.mkdir(parents=True)
    (tmp_path / "src" / "hydra_plugins").mkdir()
    (package / "a.py").write_text("1")
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "a.pyc").write_text("")
    monkeypatch.setattr(snapshot, "PACKAGE", package)
    monkeypatch.setattr(snapshot, "config_folder", lambda: tmp_path / "src" / "hydra_plugins")
    place = tmp_path / "place"
    first = snapshot.take(place, {})
    assert not (first / "code" / "peftlab" / "__pycache__").exists()
    assert snapshot.take(place, {}) == first
    (package / "a.py").write_text("2")
    second = snapshot.take(place, {})
    assert second != first
    assert (first / "code" / "peftlab" / "a.py").read_text() == "1"
    assert sorted(path.name for path in place.iterdir()) == sorted([first.name, second.name]), "nothing half-made"


def test_copies_that_nothing_needs_go(tmp_path: Path) -> None:
    """What a record names, or a worker runs, stays; and all if a record cannot be read."""
    folder, place = tmp_path / "small", tmp_path / "small" / ".slurm" / "snapshots"
    for name in ("old", "recorded", "running", ".making-left"):
        (place / name / "code").mkdir(parents=True)
    (folder / "key1").mkdir()
    (folder / "key1" / "record.json").write_text("{")
    assert snapshot.prune(place, {"running"}, folder) == []
    (folder / "key1" / "record.json").write_text('{"snapshot": "recorded"}')
    (folder / "key2").mkdir()
    (folder / "key2" / "record.json").write_text("{}")
    assert snapshot.prune(place, {"running"}, folder) == ["old"]
    assert sorted(path.name for path in place.iterdir()) == ["recorded", "running"]
    assert snapshot.prune(place, {"running"}, tmp_path) == [], "the records of an output_dir lie a folder deeper"
    assert snapshot.prune(tmp_path / "none", set(), folder) == []
