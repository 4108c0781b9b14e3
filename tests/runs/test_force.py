"""``force=true``: the old result is whole until the new one takes its place, whatever happens in between."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from peftlab import files
from peftlab.files import exchange
from peftlab.records.folder import ASIDE, RunFolder
from peftlab.records.holder import Holder
from peftlab.training import checkpoint
from tests.conftest import Peftlab
from tests.runs.small_runs import CLASSIFIER, finished, record_of

COMMAND = ("train", *CLASSIFIER, "data.path=reviews.jsonl", "name=t")


class Killed(BaseException):
    pass


@pytest.fixture
def run(reviews: Path) -> Path:
    return finished(reviews)


def contents(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}


def kill_after_epoch(patch: pytest.MonkeyPatch, epochs: int) -> None:
    write = checkpoint.AtomicCheckpointIO.save_checkpoint

    def save(self: Any, what: Any, path: Any, storage_options: Any = None) -> None:
        write(self, what, path)
        if Path(path).name == "last.ckpt" and len(what["history"]) == epochs:
            raise Killed

    patch.setattr(checkpoint.AtomicCheckpointIO, "save_checkpoint", save)


def test_a_new_result_takes_the_place_of_the_old_one(peftlab: Peftlab, run: Path) -> None:
    before, ended = run.stat().st_ino, record_of(run)["timing"]
    (run / "my notes.txt").write_text("mine")
    (run / "inspect.png").write_bytes(b"of the old weights")
    result = peftlab(*COMMAND, "force=true")
    assert result.status == 0, result.err
    assert result.out.count("epoch ") >= 3, "it is trained again"
    assert run.stat().st_ino != before
    assert record_of(run)["timing"] != ended
    assert (run / "my notes.txt").read_text() == "mine"
    assert not (run / "inspect.png").exists()
    assert [path.name for path in run.parent.iterdir()] == [run.name]
    assert peftlab("verify", "outputs", "--rerun-eval").status == 0


def test_killed_it_leaves_the_old_result_and_resumes(peftlab: Peftlab, run: Path) -> None:
    before = contents(run)
    with pytest.MonkeyPatch.context() as patch:
        kill_after_epoch(patch, 2)
        with pytest.raises(Killed):
            peftlab(*COMMAND, "force=true")
    del before[".lock"]
    assert {name: data for name, data in contents(run).items() if name != ".lock"} == before
    assert peftlab("verify", "outputs").out.count("as recorded") == 1
    assert "is finished already" in peftlab(*COMMAND).out
    result = peftlab(*COMMAND, "force=true")
    assert result.status == 0
    assert f"resuming from {run.parent}/{ASIDE}{run.name}" in result.out
    assert "epoch 1/3" not in result.out
    assert (run / "adapter.safetensors").read_bytes() == before["adapter.safetensors"]
    assert [path.name for path in run.parent.iterdir()] == [run.name]


def test_killed_between_the_exchange_and_the_end(peftlab: Peftlab, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What then lies aside is the old result: it is not resumed from."""

    def die(self: RunFolder) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "remove", die)
        with pytest.raises(Killed):
            peftlab(*COMMAND, "force=true")
    assert peftlab("verify", "outputs").status == 0
    result = peftlab(*COMMAND, "force=true")
    assert result.status == 0
    assert "epoch 1/3" in result.out
    assert [path.name for path in run.parent.iterdir()] == [run.name]


def test_a_failed_attempt_leaves_the_old_result(peftlab: Peftlab, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from peftlab.runs import train

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no")

    before = (run / "record.json").read_bytes()
    monkeypatch.setattr(train, "require_all_rows", fail)
    with pytest.raises(RuntimeError):
        peftlab(*COMMAND, "force=true")
    assert (run / "record.json").read_bytes() == before
    assert peftlab("verify", "outputs").status == 0


@pytest.mark.parametrize("name", ["checkpoints", "logs"])
def test_a_link_in_the_old_folder_is_not_written_through(peftlab: Peftlab, run: Path, name: str) -> None:
    Path("big").mkdir()
    for path in run.glob(f"{name}/*"):
        path.rename(Path("big") / path.name)
    if (run / name).exists():
        (run / name).rmdir()
    before = contents(Path("big"))
    (run / name).symlink_to(Path("big").resolve())
    result = peftlab(*COMMAND, "force=true")
    assert result.status == 0, result.err
    assert "epoch 1/3" in result.out
    assert contents(Path("big")) == before
    assert not (run / name).is_symlink()


@pytest.mark.parametrize("more", [(), ("force=true",)])
@pytest.mark.parametrize("name", ["checkpoints", "logs"])
def test_a_link_in_the_folder_of_an_unfinished_run_is_refused(
    peftlab: Peftlab, run: Path, name: str, more: tuple[str, ...]
) -> None:
    (run / "record.json").unlink()
    Path("big").mkdir()
    if (run / name).exists():
        (run / name).rename(Path("aside"))
    (run / name).symlink_to(Path("big").resolve())
    result = peftlab(*COMMAND, *more)
    assert result.status == 2
    assert f"{run}/{name} is a link" in result.err
    assert not list(Path("big").iterdir())


def test_an_output_dir_may_be_a_link(peftlab: Peftlab, reviews: Path) -> None:
    Path("disk").mkdir()
    Path("outputs").symlink_to("disk")
    assert peftlab(*COMMAND).status == 0
    assert peftlab(*COMMAND, "force=true").status == 0
    assert peftlab("verify", "disk").status == 0


def test_folders_change_names(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for system in ("linux", "elsewhere"):
        monkeypatch.setattr(files.sys, "platform", system)
        for name in ("a", "b"):
            Path(name).mkdir(exist_ok=True)
            Path(name, "f").write_text(name)
        exchange(Path("a"), Path("b"))
        assert [Path(name, "f").read_text() for name in ("a", "b")] == ["b", "a"]
        assert sorted(path.name for path in scratch.iterdir() if path.name != ".cache") == ["a", "b"]


def test_a_death_between_the_two_steps_of_other_systems(peftlab: Peftlab, run: Path) -> None:
    run.rename(run.with_name(f".replaced-{run.name}"))
    assert "is finished already" in peftlab(*COMMAND).out
    assert run.is_dir()


# -- the lock ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["link", "hard link", "pipe", "folder"])
def test_a_lock_that_is_somebodys_file(peftlab: Peftlab, run: Path, kind: str) -> None:
    (run / "record.json").unlink()
    lock = run / ".lock"
    lock.unlink(missing_ok=True)
    Path("precious.txt").write_text("my precious data\n")
    if kind == "link":
        lock.symlink_to(Path("precious.txt").resolve())
    elif kind == "hard link":
        os.link("precious.txt", lock)
    elif kind == "pipe":
        os.mkfifo(lock)
    else:
        lock.mkdir()
    result = peftlab(*COMMAND)
    assert result.status in (1, 2)
    assert str(run) in result.err
    assert "Traceback" not in result.err
    assert Path("precious.txt").read_text() == "my precious data\n"


def test_a_file_system_without_locks(peftlab: Peftlab, reviews: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    def flock(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(files.fcntl, "flock", flock)
    result = peftlab(*COMMAND)
    assert result.status == 2
    assert "cannot lock outputs/t/" in result.err
    assert ".lock (No locks available)" in result.err
    assert "Choose a folder on a file system that has locks" in result.err


def test_a_lock_of_a_folder_that_was_replaced_meanwhile_is_taken_anew(run: Path) -> None:
    folder = RunFolder(run)
    take = files.take_lock
    swapped = []

    def slow(file: Any, *words: Any, **options: Any) -> bool:
        if not swapped:
            swapped.append(run.rename("old"))
            run.mkdir()
        return take(file, *words, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("peftlab.records.folder.take_lock", slow)
        with folder.locked():
            assert json.loads((run / ".lock").read_text())["pid"] == str(os.getpid())
            assert folder.held_by() == Holder.here()
    assert folder.held_by() is None
