"""Weights & Biases: what a run is called there, one process a run, and records replayed as clean runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from peftlab.training.wandb_runs import cell_of, method_of, names
from tests.conftest import TINY, Peftlab
from tests.runs.small_runs import edit, finished, record_of
from tests.training.wandb_files import Written, read


@pytest.fixture
def run(reviews: Path) -> Path:
    return finished(reviews)


def offline_runs(folder: Path) -> list[Path]:
    return sorted(folder.glob("logs/records/*/wandb/offline-run-*/*.wandb"))


def sync(peftlab: Peftlab, *arguments: str | Path) -> str:
    result = peftlab("wandb-sync", *arguments, "--mode", "offline")
    assert result.status == 0, result.err
    return result.out


def own(values: dict[str, Any]) -> dict[str, Any]:
    """Without what W&B adds of its own."""
    return {name: value for name, value in values.items() if not name.startswith("_")}


def test_a_record_comes_back_from_the_file(peftlab: Peftlab, run: Path) -> None:
    out = sync(peftlab, "outputs", "--project", "paper")
    assert out.startswith(f"new       {run}\npaper, offline: 1 new\n")
    (file,) = offline_runs(run)
    assert f"wandb sync {file.parent}" in out
    record, written = record_of(run), read(file)
    assert (written.id, written.project, written.group) == (run.name, "paper", "t")
    assert (written.name, written.job_type) == (f"lora/{run.name}", "lora")
    assert written.tags == ["lora", "TextFiles", "seed 0"]
    assert written.exit_code == 0
    about = written.config.pop("record")
    assert own(written.config) == record["config"]
    for part in ("key", "git", "versions", "hardware", "data", "parameters", "selection"):
        assert about[part] == record[part]
    assert [row["_step"] for row in written.history] == [0, 1, 2]
    for row, recorded in zip(written.history, record["history"], strict=True):
        per_class = recorded.pop("validation/per_class")
        for metric, numbers in per_class.items():
            recorded |= {f"validation/{metric}/{label}": n for label, n in zip(("bad", "good"), numbers, strict=True)}
        assert own(row) == recorded
    for split in ("train", "validation", "test"):
        for name in ("loss", "accuracy", "macro_f1"):
            assert written.summary[f"{split}/{name}"] == record["metrics"][split][name], "of the chosen epoch"
    assert written.summary["test/f1/good"] == record["metrics"]["test"]["per_class"]["f1"]["good"]
    assert written.summary["selection/epoch"] == record["selection"]["epoch"]
    assert written.summary["parameters/trainable"] == record["parameters"]["trainable"]


def test_the_summary_is_of_the_chosen_epoch_and_not_of_the_last(peftlab: Peftlab, run: Path) -> None:
    def chosen_first(record: Any) -> None:
        record["metrics"]["validation"]["accuracy"] = 0.123

    edit(run, chosen_first)
    sync(peftlab, run)
    written = read(offline_runs(run)[0])
    assert written.summary["validation/accuracy"] == 0.123
    assert written.history[-1]["validation/accuracy"] != 0.123


def test_again_does_nothing_and_a_changed_record_replaces(peftlab: Peftlab, run: Path) -> None:
    sync(peftlab, run)
    (first,) = offline_runs(run)
    content = first.read_bytes()
    out = sync(peftlab, run)
    assert out == f"unchanged {run}\npeftlab, offline: 1 unchanged\n"
    assert [file.read_bytes() for file in offline_runs(run)] == [content]
    edit(run, lambda record: record["metrics"]["test"].update(loss=0.5))
    assert "1 replaced" in sync(peftlab, run)
    (second,) = offline_runs(run)
    written = read(second)
    assert written.summary["test/loss"] == 0.5
    assert len(written.history) == 3, "the epochs are there once"
    assert written.id == run.name
    assert "1 new" in sync(peftlab, run, "--project", "other"), "another project is another place"
    assert "1 unchanged" in sync(peftlab, run)
    assert "1 unchanged" in sync(peftlab, run, "--project", "other")
    assert len(offline_runs(run)) == 2
    marker = json.loads((run / ".wandb-synced.json").read_text())
    assert [(entry["project"], entry["mode"], entry["id"]) for entry in marker["synced"]] == [
        ("peftlab", "offline", run.name),
        ("other", "offline", run.name),
    ]


def test_an_attempt_that_was_killed_is_replaced(peftlab: Peftlab, run: Path) -> None:
    sync(peftlab, run)
    (run / ".wandb-synced.json").unlink()  # as if it had died before noting it
    assert "1 new" in sync(peftlab, run)
    assert len(offline_runs(run)) == 1
    (run / ".wandb-synced.json").write_text("{")
    assert "1 new" in sync(peftlab, run)
    assert len(offline_runs(run)) == 1


def test_a_dry_run_and_what_is_skipped(peftlab: Peftlab, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(Path.cwd()))
    result = peftlab("wandb-sync", run, "--dry-run")
    assert result.out == f"new       {run}\npeftlab, online, nothing done: 1 new\n"
    assert not (run / "logs").exists()
    assert not (run / ".wandb-synced.json").exists()
    edit(run, lambda record: record.update(status="failed"))
    assert sync(peftlab, run).startswith(f"skipped   {run}: the run is failed\n")


@pytest.mark.parametrize("dry", [True, False])
def test_a_record_that_is_not_as_written_is_left_out_and_the_others_are_synced(
    peftlab: Peftlab, run: Path, dry: bool
) -> None:
    edited, damaged, unknown, whole = (run.with_name(name) for name in ("0", "1", "2", "3"))
    for copy in (edited, damaged, unknown, whole):
        shutil.copytree(run, copy)
    edit(edited, lambda record: record["metrics"]["test"].update(accuracy=1.0), sealed=False)
    (damaged / "record.json").write_bytes(b"\xff\xfe")
    edit(unknown, lambda record: record.update(schema_version=2))
    edit(run, lambda record: record.pop("checksum"))
    result = peftlab("wandb-sync", "outputs", "--mode", "offline", *(["--dry-run"] if dry else []))
    assert result.status == 1
    lines = result.out.splitlines()
    changed = f"{edited}/record.json was changed after it was written: its checksum is that of other content"
    assert lines[0].startswith(f"left out  {edited}: {changed}")
    assert lines[1].startswith(f"left out  {damaged}: {damaged}/record.json is damaged")
    assert "schema version 2" in lines[2]
    assert lines[3] == f"new       {whole}"
    assert lines[4].startswith(f"left out  {run}: record.json has lost its checksum")
    assert lines[5].endswith(": 1 new, 4 left out")
    assert [folder for folder in (edited, damaged, unknown, run) if (folder / "logs").exists()] == []
    assert len(offline_runs(whole)) == (0 if dry else 1)


def test_wrong_input(peftlab: Peftlab, run: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(scratch))  # no login here
    (scratch / "empty").mkdir()
    for arguments, said in (
        ([run], "--mode=online needs an account: set WANDB_API_KEY or call `wandb login`; or give --mode offline."),
        ([run, "--project", "../x"], "--project='../x'"),
        ([run, "--entity", ""], "--entity=''"),
        (["empty"], "'empty' holds no run"),
        ([run / "config.yaml"], "is a file"),
        ([run, "--mode", "disabled"], "invalid choice"),
    ):
        result = peftlab("wandb-sync", *arguments)
        assert result.status == 2
        assert said in result.err
        assert result.out == ""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert "WANDB_MODE=disabled sends nothing anywhere" in peftlab("wandb-sync", run).err
    (run / "logs").write_text("a file where W&B's folder must be")
    result = peftlab("wandb-sync", run, "--mode", "offline")
    assert result.status == 2
    assert "logs/records" in result.err
    assert not (run / ".wandb-synced.json").exists()


def test_a_folder_that_cannot_be_written(peftlab: Peftlab, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    access = os.access  # root may write anywhere, so the answer is given here
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and access(path, mode))
    result = peftlab("wandb-sync", run, "--mode", "offline")
    assert result.status == 2
    assert f"cannot write {run}" in result.err
    assert not (run / "logs").exists()


def test_names(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"name": "lecture", "peft": {"_target_": "peftlab.peft.lora.LoRA"}}
    folder = scratch / "outputs" / "lecture" / "abc"
    folder.mkdir(parents=True)
    assert names(config, "abc", folder).name == "lora/abc"
    cells = [{"id": "head", "runs": {"0": "xyz"}}, {"id": "lora_2", "runs": {"0": "abc", "1": "def"}}]
    (folder.parent / "sweep.json").write_text(json.dumps({"format": 1, "cells": cells}))
    found = names(config, "abc", folder)
    assert (found.group, found.job_type, found.name) == ("lecture", "lora", "lora_2/abc")
    assert cell_of(folder, "other") is None
    (folder.parent / "sweep.json").write_text("{")
    assert names(config, "abc", folder).name == "lora/abc"
    monkeypatch.setenv("PEFTLAB_CELL", "lora_2")  # while the sweep runs, its file does not name the run yet
    assert names(config, "abc", folder).name == "lora_2/abc"
    assert method_of({"peft": {"_target_": "my_methods.mine.MyAdapter"}}) == "MyAdapter"


WANDB = [option for option in TINY if not option.startswith("logger")]
JOBS = """
import os, sys
from peftlab.cli import main
import wandb  # as a warm server would have
def job(seed):
    status = main(["train", "logger=wandb", "trainer.max_epochs=1", "name=w", f"seed={seed}", *sys.argv[1:]])
    print("job", seed, "status", status, "service", os.environ.get("WANDB_SERVICE"), "run", wandb.run, flush=True)
job(0)
job(1)
for seed in (2, 3):
    child = os.fork()
    if not child:
        job(seed)
        os._exit(0)  # without the exit handlers that W&B relies on
    os.waitpid(child, 0)
"""


def services(parent_marker: str) -> list[str]:
    """Command lines of W&B's processes that live and were started with ``parent_marker`` in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if parent_marker.encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_bytes().decode().replace("\0", " "))
        except OSError:
            continue
    return [line for line in found if "wandb-core" in line]


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are looked up in /proc")
def test_a_process_of_wandb_for_each_job_which_ends_with_it(reviews: Path) -> None:
    marker = f"PEFTLAB_TEST_JOBS={os.getpid()}-{time.time_ns()}"
    name, _, value = marker.partition("=")
    done = subprocess.run(
        [sys.executable, "-c", JOBS, *WANDB, f"data.path={reviews}", "logger.tags=[mine]"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "WANDB_MODE": "offline", name: value},
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("job ")]
    assert lines == [f"job {seed} status 0 service None run None" for seed in range(4)], done.stderr
    assert services(marker) == []
    files = list(Path("outputs/w").glob("*/logs/wandb/offline-run-*/*.wandb"))
    written: list[Written] = [read(file) for file in files]
    assert {one.id for one in written} == {path.name for path in Path("outputs/w").iterdir()}
    assert len(written) == 4
    for one in written:
        assert (one.group, one.job_type, one.name, one.tags) == ("w", "lora", f"lora/{one.id}", ["mine"])
        assert one.exit_code == 0


def test_a_run_that_fails_is_a_failed_run_in_wandb(
    peftlab: Peftlab, reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peftlab.training.module import TrainingModule

    def broken(self: Any) -> None:
        raise RuntimeError("no more")

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(TrainingModule, "on_test_epoch_end", broken)
    with pytest.raises(RuntimeError, match="no more"):
        peftlab("train", "logger=wandb", "trainer.max_epochs=1", "name=w", *WANDB, f"data.path={reviews}")
    (file,) = Path("outputs/w").glob("*/logs/wandb/offline-run-*/*.wandb")
    assert read(file).exit_code == 1
