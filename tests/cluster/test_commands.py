"""The commands, and those of docs/cluster.md, with programs of the test's in the place of Slurm's."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from peftlab.cluster.settings import read_cluster
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


def test_the_how_tos_file_is_one() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", HOW_TO, flags=re.DOTALL)
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
        if command[1] != "status":
            assert result.out.startswith("submitted ")
