"""The worker's script, run by bash, with programs of the test's in the place of Python and scontrol."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest

from peftlab.cluster.script import worker_script
from peftlab.cluster.settings import Cluster

WORKER = """#!/bin/bash
printf '%s\\n' "$PWD" "$PYTHONPATH" "$PEFTLAB_WORKER" "$SET" "$@" > said.txt
trap 'echo asked > asked.txt; exit {asked}' TERM
touch ready.txt
[ -n "{status}" ] && exit {status}
for _ in $(seq 600); do sleep 0.05; done
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    folder = tmp_path / 'it\'s a "place" $HOME'
    folder.mkdir()
    return folder


def start(place: Path, *, asked: int = 85, status: str = "", **cluster: object) -> subprocess.Popen[str]:
    for name, text in (
        ("python", WORKER.format(asked=asked, status=status)),
        ("scontrol", f'#!/bin/bash\necho "$@" >> {shlex.quote(str(place / "scontrol.txt"))}; exit 1\n'),
    ):
        (place / name).write_text(text)
        (place / name).chmod(0o755)
    text = worker_script(
        title="small",
        cluster=Cluster(**cluster),  # type: ignore[arg-type]
        command=["sweep", str(place / "sweep.yaml"), "data.path='a b'"],
        code=place / "code",
        cwd=place,
        submitted=["sbatch", "--x=a b"],
        python=str(place / "python"),
    )
    script = place / "worker.sh"
    script.write_text(text)
    environment = os.environ | {"SLURM_ARRAY_JOB_ID": "45", "SLURM_ARRAY_TASK_ID": "3", "PYTHONPATH": "/before"}
    environment["PATH"] = f"{place}:{environment['PATH']}"
    return subprocess.Popen(
        ["bash", str(script)], env=environment, stdout=subprocess.PIPE, text=True, cwd="/", start_new_session=True
    )


def ended(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=60)
    return said


def until_ready(place: Path) -> None:
    end = time.monotonic() + 60
    while not (place / "ready.txt").exists():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_words_and_paths_arrive_as_they_are(place: Path) -> None:
    process = start(place, status="0", setup=["export SET='x y'"], container="env")
    assert "ended with exit status 0" in ended(process)
    assert process.returncode == 0
    assert (place / "said.txt").read_text().splitlines() == [
        str(place), f"{place}/code:/before", "45_3", "x y", "-m", "peftlab", "sweep", f"{place}/sweep.yaml",
        "data.path='a b'",
    ]  # fmt: skip
    assert not (place / "scontrol.txt").exists()


def test_before_the_end_of_its_time_it_ends_in_order_and_is_queued_again(place: Path) -> None:
    process = start(place)
    until_ready(place)
    os.kill(process.pid, signal.SIGUSR1)  # to the script alone, as --signal=B: does
    said = ended(process)
    assert (place / "asked.txt").exists()
    assert "ended with exit status 85" in said
    assert (place / "scontrol.txt").read_text() == "requeue 45_3\n"
    assert "cannot be queued again: submit it anew" in said, "this scontrol fails"
    assert process.returncode == 85


def test_cancelled_it_ends_in_order_and_is_not_queued_again(place: Path) -> None:
    process = start(place)
    until_ready(place)
    os.kill(process.pid, signal.SIGTERM)
    assert "ended with exit status 85" in ended(process)
    assert (place / "asked.txt").exists()
    assert not (place / "scontrol.txt").exists()


@pytest.mark.parametrize("status", ["1", "2"])
def test_what_fails_is_not_queued_again(place: Path, status: str) -> None:
    process = start(place, status=status)
    ended(process)
    assert process.returncode == int(status)
    assert not (place / "scontrol.txt").exists()


def test_what_was_done_when_its_time_was_over_is_not_queued_again(place: Path) -> None:
    process = start(place, asked=0)
    until_ready(place)
    os.kill(process.pid, signal.SIGUSR1)
    ended(process)
    assert process.returncode == 0
    assert not (place / "scontrol.txt").exists()


def test_a_run_on_several_nodes_is_started_by_srun(place: Path) -> None:
    text = worker_script(
        title="t",
        cluster=Cluster(nodes=2, container="env"),
        command=["train"],
        code=place,
        cwd=place,
        submitted=["sbatch"],
        python="python",
    )
    assert "\nsrun --kill-on-bad-exit=0 --wait=60 env python -m peftlab train &\n" in text
    assert text.count('kill -USR1 "$child"') == 2, "at SIGTERM srun would kill the step"
