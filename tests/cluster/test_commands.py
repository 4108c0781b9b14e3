"""The commands, and those of docs/cluster.md, with programs of the test's in the place of Slurm's."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from peftlab.cluster.settings import SHIPPED, read_cluster
from tests.cluster.conftest import FakeSlurm
from tests.cluster.test_work import SWEEP, finish
from tests.conftest import REPOSITORY, Peftlab

HOW_TO = (REPOSITORY / "docs" / "cluster.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line, comments=True)
    for block in re.findall(r"```sh\n(.*?)```", HOW_TO, flags=re.DOTALL)
    for line in block.splitlines()
]


def test_a_sweep_is_submitted_once_and_never_when_finished(
    peftlab: Peftlab, reviews: Path, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("small.yaml").write_text(SWEEP)
    command = ("sweep", "small.yaml", "seeds=0", "--on", "slurm", "--set", "workers=3")
    first = peftlab(*command)
    assert first.status == 0, first.err
    assert first.out.splitlines() == [
        "submitted 2 workers as job 1, for 2 of 2 runs.",
        "watch it: peftlab status outputs/small",
    ]
    assert peftlab("status", "outputs/small").out.splitlines()[-1] == "outputs/small: 2 runs: 2 queued"
    again = peftlab(*command)
    assert (
        "2 of 2 runs are to be made, and their workers are in the queue already: 1_0 pending, 1_1 pending." in again.out
    )
    for path in [line.split('"')[3] for line in Path("outputs/small/.jobs.jsonl").read_text().splitlines()]:
        finish(Path("outputs/small", path))
    done = peftlab(*command)
    assert done.out.splitlines() == [
        "all 2 runs of small are finished: nothing was submitted.",
        "its table: peftlab sweep small.yaml seeds=0 --report-only",
    ]
    assert slurm.arrays == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sweep", "small.yaml", "--on", "pbs"], "--on pbs: it must be slurm"),
        (["sweep", "small.yaml", "--set", "time=3"], "--cluster and --set go with --on slurm"),
        (["sweep", "small.yaml", "--on", "slurm", "--report-only"], "--publish and --report-only work on what is fini"),
        (["sweep", "small.yaml", "--on", "slurm", "--cluster", "no.yaml"], "cannot read the cluster file 'no.yaml'"),
        (["sweep", "small.yaml", "--on", "slurm", "--set", "workers=0"], "--set workers=0: workers=0 is not allowed"),
        (["check", "small.yaml", "--on", "slurm"], "peftlab sweep small.yaml --on slurm --dry-run"),
        (["check", "peft=lora", "--set", "time=3"], "peftlab submit --dry-run train …"),
        (["sweep", "--new-cluster", "small.yaml"], "--new-cluster small.yaml: the file is there already"),
        (["submit", "sweep", "small.yaml"], "A sweep's file: peftlab sweep FILE --on slurm."),
        (["submit", "train", "peft.rnak=3"], "unknown key 'peft.rnak'"),
        (["status", "nowhere"], "there is no folder 'nowhere'"),
    ],
)
def test_mistakes_are_one_line(peftlab: Peftlab, reviews: Path, slurm: FakeSlurm, words: list[str], said: str) -> None:
    Path("small.yaml").write_text(SWEEP)
    result = peftlab(*words)
    assert result.status == 2
    assert said in result.err
    assert len(result.err.splitlines()) == 1
    assert slurm.arrays == 0
    assert not Path("outputs").exists()


def test_a_dry_run_says_what_would_be_submitted_without_any_slurm(
    peftlab: Peftlab, reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    Path("small.yaml").write_text(SWEEP)
    command = ["sweep", "small.yaml", "--on", "slurm", "--set", "workers=3", "--set", "partition=gpu", "--dry-run"]
    result = peftlab(*command, "--minutes-per-job", "5")
    assert result.status == 0, result.err
    assert "would submit 3 workers for 4 of 4 runs" in result.out
    for part in ("--array=0-2 ", "--partition=gpu ", "-m peftlab sweep", "--minutes-per-job 5.0", "lora_2, seed 0"):
        assert part in result.out, part
    assert "#!/bin/bash" in result.out
    one = peftlab("submit", "--set", "cpus=2", "--dry-run", "train", "data=text_files", f"data.path={reviews}")
    assert "would submit 1 worker for 1 of 1 run" in one.out
    assert "--cpus-per-task=2 " in one.out
    assert not Path("outputs").exists()
    for words in (command[:-1], ["submit", "train", "data=text_files", f"data.path={reviews}"]):
        assert "--dry-run shows what would be submitted" in peftlab(*words).err


def test_what_is_shown_is_what_is_submitted(peftlab: Peftlab, reviews: Path, slurm: FakeSlurm) -> None:
    Path("small.yaml").write_text(SWEEP)
    command = ("sweep", "small.yaml", "--on", "slurm", "--set", "workers=3")
    shown = peftlab(*command, "--dry-run").out
    assert slurm.arrays == 0
    assert peftlab(*command).status == 0
    (script,) = Path("outputs/small/.slurm").glob("*.sh")
    (copy,) = Path("outputs/small/.slurm/snapshots").iterdir()
    assert shown.endswith(script.read_text().replace(script.stem, "TOKEN").replace(copy.name, "HASH"))
    for option in slurm.options:
        assert option.replace(script.stem, "TOKEN") in shown
    slurm.says("down", "slurm_load_jobs error: Unable to contact slurm controller")
    said = peftlab(*command).err
    assert "Unable to contact slurm controller. Nothing was submitted" in said
    assert "login node" in said


def test_the_how_tos_file_is_one() -> None:
    shipped, text = re.findall(r"```yaml[^\n]*\n(.*?)```", HOW_TO, flags=re.DOTALL)
    assert shipped == SHIPPED.read_text(encoding="utf-8")
    Path("mine.yaml").write_text(text)
    assert read_cluster(Path("mine.yaml")).options()[0] == "--partition=gpu"
    assert len([line for line in text.splitlines() if line]) <= 10


def test_the_how_tos_commands_work(peftlab: Peftlab, scratch: Path, slurm: FakeSlurm) -> None:
    (scratch / "sweeps").symlink_to(REPOSITORY / "sweeps")
    test_the_how_tos_file_is_one()
    assert len(COMMANDS) >= 9
    for command in COMMANDS:
        if command[1] == "report" or "--report-only" in command:  # of what is finished: tests of their own
            continue
        slurm.queue = []
        result = peftlab(*command[1:])
        assert result.status == 0, (command, result.err)
        if "--new-cluster" in command:
            assert read_cluster(Path("cluster.yaml")) == read_cluster(None)
        elif "--dry-run" in command:
            assert "would submit " in result.out
        elif command[1] != "status":
            assert result.out.startswith("submitted ")
