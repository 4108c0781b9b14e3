"""What a lock says of its holder, also where the file system keeps locks to each machine, or keeps none."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from peftlab import files
from peftlab.errors import PeftlabError, RunInUse
from peftlab.records import holder
from peftlab.records.folder import RunFolder
from peftlab.records.holder import Holder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "key")


def leave(folder: RunFolder, age: float = 0.0, **said: str) -> None:
    """A lock that nobody has and that names a holder, last heard of ``age`` seconds ago."""
    folder.path.mkdir()
    folder.lock.write_text(json.dumps({"pid": "7", "host": "elsewhere", "job": "45_0", **said}))
    then = time.time() - age
    os.utime(folder.lock, (then, then))


def test_a_lock_says_who_has_it_and_nobody_afterwards(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "46")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "45")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    with folder.locked():
        found = folder.held_by()
        assert found == Holder(str(os.getpid()), os.uname().nodename, "45_3")
        assert str(found) == f"{os.getpid()} on {os.uname().nodename}, Slurm job 45_3"
        assert folder.last_holder() == found
    assert folder.held_by() is None
    assert folder.last_holder() is None


def test_a_holder_gives_signs_of_life(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holder, "BEAT_SECONDS", 0.01)
    with folder.locked():
        os.utime(folder.lock, (0, 0))
        end = time.monotonic() + 30
        while folder.lock.stat().st_mtime == 0:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_a_live_holder_on_another_machine_is_believed_although_its_lock_is_free(folder: RunFolder) -> None:
    leave(folder, age=holder.SILENT_SECONDS / 2)
    assert folder.held_by() == Holder("7", "elsewhere", "45_0")
    with pytest.raises(RunInUse, match=r"process 7 on elsewhere, Slurm job 45_0, .* less than 60 s"), folder.locked():
        pass
    assert folder.last_holder() == Holder("7", "elsewhere", "45_0"), "what it says stays"


@pytest.mark.parametrize(
    ("age", "host"), [(2 * holder.SILENT_SECONDS, "elsewhere"), (0.0, os.uname().nodename), (0.0, "")]
)
def test_a_dead_holder_is_not(folder: RunFolder, age: float, host: str) -> None:
    """On this machine the kernel knows; elsewhere its silence says it."""
    leave(folder, age, host=host)
    assert folder.held_by() is None
    assert folder.last_holder() == Holder("7", host, "45_0")
    with folder.locked():
        assert folder.held_by() == Holder.here()


def test_locks_of_earlier_versions_are_read(folder: RunFolder) -> None:
    folder.path.mkdir()
    folder.lock.write_text("123")
    assert folder.last_holder() == Holder("123")
    with folder.locked():
        pass


def test_a_file_system_that_grants_every_lock_is_found(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def granted(*_: Any) -> None:
        pass

    monkeypatch.setattr(files.fcntl, "flock", granted)
    with pytest.raises(PeftlabError, match=r"cannot lock .*key/\.lock: .* grants every lock .* -o flock"):
        folder.locked().__enter__()
