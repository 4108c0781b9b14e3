"""``peftlab train -m``: checked first, isolated, shared between launchers, and ended in order."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY, TINY, Peftlab, Result
from tests.sweeps.pool_helpers import COMMON, alive, config_dir, events, group_members, until

Multirun = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def multirun() -> Iterator[Multirun]:
    """``peftlab train -m`` in a process, a session and a process group of its own; none outlives the test."""
    launchers: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "peftlab", "train", "-m", "--config-dir", config_dir(), *COMMON, *arguments]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        launcher = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True,
            preexec_fn=_hear_ctrl_c,
        )  # fmt: skip
        launchers.append(launcher)
        return launcher

    yield start
    for launcher in launchers:
        if launcher.poll() is None:
            launcher.kill()
        with launcher:  # closes its pipes and reaps it
            pass


def _hear_ctrl_c() -> None:
    """A shell's background job, which the tests may be, ignores Ctrl-C, and so would all that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def records(name: str = "odd") -> list[dict[str, Any]]:
    found = [json.loads(path.read_text()) for path in Path("outputs", name).glob("*/record.json")]
    return [record for record in found if record["status"] == "finished"]


def test_a_sweep_runs_each_job_in_a_process_of_its_own(peftlab: Peftlab, reviews: Path) -> None:
    arguments = ("--config-dir", config_dir(), *COMMON, "name=sweep", "data.act=none,refuse", "seed=0,1")
    result = peftlab("train", "-m", *arguments)
    assert result.status == 1
    assert "2 of 4 jobs failed" in result.err
    assert re.search(r"data.act=refuse seed=1 \(exit status 2, outputs/sweep/.logs/\w+.txt\)", result.err)
    assert "these rows are not for you" in result.err, "the last lines of the log"
    assert "The same command again skips what is finished and runs the rest." in result.err
    assert "Traceback" not in result.err
    assert "[4/4]" in result.out
    assert "running 4 jobs, 1 at a time" in result.out
    assert {record["config"]["seed"] for record in records("sweep")} == {0, 1}
    stamps = {path: path.stat().st_mtime_ns for path in Path("outputs/sweep").glob("*/record.json")}
    again = peftlab("train", "-m", *arguments)
    assert "2 of 4 jobs are finished already" in again.out
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps, "finished jobs are skipped"


def test_config_name_config_dir_and_swept_parameters(peftlab: Peftlab, reviews: Path) -> None:
    folder = Path(config_dir())
    (folder / "primary.yaml").write_text("defaults: [train, _self_]\nname: primary\n")
    (folder / "experiment").mkdir()
    (folder / "experiment" / "grid.yaml").write_text(
        "# @package _global_\nhydra:\n  sweeper:\n    params:\n      data.mark: 1,2\n"
        "  launcher:\n    n_parallel: 2\n    threads_per_job: 1\n"
    )
    given = ["--config-dir", str(folder), "--config-name", "primary", *(o for o in COMMON if o != "name=odd")]
    result = peftlab("train", "-m", *given, "experiment=grid")
    assert result.status == 0, result.err
    assert "running 2 jobs, 2 at a time, 1 CPU thread each" in result.out
    assert sorted(record["config"]["data"]["mark"] for record in records("primary")) == [1, 2]
    assert "--config-name" in records("primary")[0]["argv"]


def test_what_no_model_can_have_is_known_before_the_first_job(peftlab: Peftlab, reviews: Path) -> None:
    """Every fault once, with the jobs that have it; what has begun is not looked at again."""
    given = [*TINY, "data.path=reviews.jsonl", "name=sweep", "trainer.max_epochs=1"]
    faulty = [*given, "peft.targets=[query],[qeury],[embedding]", "peft.rank=2,33", "data.max_length=48,600", "seed=0"]
    for command in ("train", "check"):
        result = peftlab(command, "-m", *faulty)
        assert result.status == 2
        assert "10 of 12 jobs cannot run, so none is started:" in result.err
        told = {line.strip().split(" (")[0]: line for line in result.err.splitlines()[1:]}
        assert set(told) == {"job 1", "jobs 2", "job 5", "jobs 6"}  # in the order of what is swept over
        assert "peft.targets=[query] peft.rank=33): peft.rank=33 is above" in told["job 1"]
        assert "11 (" in told["jobs 6"]
        assert "): data.max_length=600 is more than this bert has positions for" in told["jobs 6"]
    assert "'qeury' matches no" in result.err
    assert "Did you mean 'query'?" in result.err
    assert not records("sweep")
    assert peftlab("train", "-m", *given, "peft.rank=2", "seed=0").status == 0


def test_a_mistake_in_a_late_job_starts_none(peftlab: Peftlab, reviews: Path) -> None:
    given = ["train", "-m", "--config-dir", config_dir(), *COMMON, "data.mark=range(0,30)"]
    result = peftlab(*given, "seed=0,-1")
    assert result.status == 2
    assert "30 of 60 jobs cannot run" in result.err
    assert "jobs 1 (data.mark=0 seed=-1), 3 " in result.err
    assert "and 24 more: seed=-1 is not allowed" in result.err
    # in batches too, and where only the data are missing
    batches = peftlab(*given, "data.path=reviews.jsonl,nowhere", "hydra.sweeper.max_batch_size=1")
    assert batches.status == 2
    assert "nowhere" in batches.err
    assert not events()
    assert not Path("outputs/odd").exists()


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("n_parallel=0", "hydra.launcher.n_parallel=0 is not allowed"),
        ("retries=many", "hydra.launcher.retries='many' is not allowed"),
        ("on_error=contine", "Did you mean 'continue'?"),
        ("n_paralel=2", "n_paralel"),
        ("devices_per_job=-1", "hydra.launcher.devices_per_job=-1"),
    ],
)
def test_wrong_options(peftlab: Peftlab, reviews: Path, option: str, said: str) -> None:
    result = peftlab("train", "-m", "--config-dir", config_dir(), *COMMON, f"hydra.launcher.{option}")
    assert result.status == 2
    assert said in result.err
    assert "Traceback" not in result.err


@pytest.fixture
def multirun_here(peftlab: Peftlab, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """The same in this process, whose server of jobs is warm: where the launcher's own process is not the point."""
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    return lambda *arguments: peftlab("train", "-m", "--config-dir", config_dir(), *COMMON, *arguments)


def test_two_launchers_at_once_train_each_job_once(
    reviews: Path, multirun: Multirun, multirun_here: Callable[..., Result]
) -> None:
    jobs = ("data.mark=range(0,5)", "data.act=wait", "hydra.launcher.retries=0")
    one = multirun(*jobs)
    until(lambda: len(events()) == 1, "the one runs its first job")
    release = threading.Thread(
        target=lambda: (until(lambda: len(events()) == 2, "the other runs another job"), Path("go").touch())
    )
    release.start()
    other = multirun_here(*jobs, "hydra.launcher.n_parallel=1")
    release.join()
    assert other.status == 0, other.err
    out, err = one.communicate(timeout=300)
    assert one.returncode == 0, out + err
    assert sorted(event["mark"] for event in events()) == list("01234")
    assert len(records()) == 5


def test_a_killed_launcher_takes_its_jobs_and_server_with_it(
    reviews: Path, multirun: Multirun, multirun_here: Callable[..., Result]
) -> None:
    launcher = multirun("data.mark=1,2", "data.act=wait", "hydra.launcher.n_parallel=2")
    until(lambda: len(events()) == 2, "both jobs run")
    workers = [int(event["pid"]) for event in events()]
    servers = {int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) for pid in workers}
    assert len(servers) == 1
    assert launcher.pid not in servers
    launcher.send_signal(signal.SIGKILL)
    launcher.communicate(timeout=300)
    until(lambda: not any(alive(pid) for pid in [*workers, *servers]), "nothing of the sweep is left")
    until(lambda: not group_members(launcher.pid), "nothing of its session is left")
    Path("go").touch()
    again = multirun_here("data.mark=1,2", "data.act=wait")
    assert again.status == 0, again.err
    assert len(records()) == 2
    assert len(events()) == 4


@pytest.mark.parametrize(("number", "times", "status"), [(signal.SIGINT, 2, 130), (signal.SIGTERM, 1, 85)])
def test_asked_to_end(reviews: Path, multirun: Multirun, number: int, times: int, status: int) -> None:
    """The first job is finished, the second waits for ever; in the second case it does not hear the first signal."""
    launcher = multirun("data.mark=1,2", "+data.ranks=[0]", "data.act=wait", "data.path=reviews.jsonl")
    until(lambda: len(events()) == 1, "the first job runs")
    Path("go_1").touch()
    until(lambda: len(records()) == 1, "the first job is finished")
    until(lambda: len(events()) == 2, "the second job runs")
    worker = int(events()[1]["pid"])
    if times == 2:
        os.kill(worker, signal.SIGSTOP)
    launcher.send_signal(number)
    if times == 2:
        until(lambda: pending(worker, signal.SIGTERM), "the launcher asks the job to end")
        launcher.send_signal(signal.SIGINT)
    out, err = launcher.communicate(timeout=300)
    assert launcher.returncode == status, out + err
    assert "1 of 2 jobs are finished. The same command again skips what is finished and runs the rest." in err
    assert "Traceback" not in out + err
    assert not alive(worker)
    assert len(records()) == 1


def pending(pid: int, number: int) -> bool:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):  # on a busy machine the launcher's patience can end before we look
        return True
    masks = [int(line.split()[1], 16) for line in lines if line.startswith(("ShdPnd", "SigPnd"))]
    return any(mask >> (number - 1) & 1 for mask in masks)


@pytest.mark.slow
def test_ddp_jobs_never_mix(reviews: Path, multirun_here: Callable[..., Result]) -> None:
    """After a job that failed in rank 1 alone, both ranks of the next train its config; rank 1 ends with rank 0."""
    ddp = ["trainer.devices=2", "trainer.strategy=ddp", "trainer.accelerator=cpu", "data.ranks=[1]"]
    Path("acted_2").touch()  # the second job behaves
    first = multirun_here("data.mark=1,2", "data.act=crash", "data.once=true", *ddp)
    assert first.status == 1, first.err
    assert "1 of 2 jobs failed" in first.err
    assert "data.mark=1" in first.err
    ranks = [(event["mark"], event["rank"]) for event in events()]
    assert ranks == [("1", "0"), ("1", "1"), ("2", "0"), ("2", "1")]
    assert [record["config"]["data"]["mark"] for record in records()] == [2]
    killed = multirun_here("data.mark=3", "data.act=kill the parent", *ddp)
    assert killed.status == 1
    assert "killed by signal 9 (SIGKILL)" in killed.err
    assert len(events()) == 6
    until(lambda: not any(alive(int(event["pid"])) for event in events()), "rank 1 has ended with rank 0", seconds=60)
