"""The pool: what fails, what is retried, what runs once, and what is left to other processes."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from peftlab.errors import ConfigError
from peftlab.machine import visible_gpus
from peftlab.records.folder import RunFolder
from peftlab.records.holder import Holder
from peftlab.sweeps import pool, processes
from peftlab.sweeps.cache import ConfigCache
from peftlab.sweeps.job_spec import JobSpec
from peftlab.sweeps.jobs import FixedPlan, Job
from peftlab.sweeps.pool import PoolOptions
from peftlab.sweeps.progress import Progress
from peftlab.sweeps.slots import Machine
from tests.conftest import REPOSITORY
from tests.sweeps.pool_helpers import COMMON, events, job, until


def folder_of(one: Job) -> RunFolder:
    return RunFolder.of(ConfigCache().config(one))


def marks() -> list[str]:
    return [event["mark"] for event in events()]


def test_failures_are_isolated_retried_and_told(reviews: Path, capfd: pytest.CaptureFixture[str]) -> None:
    jobs = [
        job(1, "data.act=crash"),
        job(2, "peft=lora", "peft.targets=[hidden]", "peft.rank=999"),
        job(3, "data.act=die", "data.once=true"),
        job(4),
    ]
    jobs.append(Job("again", "job 4 again", (*jobs[3].overrides, "logger=csv"), jobs[3].config_dir))
    outcome = pool.run(FixedPlan(jobs), PoolOptions(n_parallel=2, threads_per_job=1, retries=1))
    said = capfd.readouterr().out
    assert set(outcome.records) == set(outcome.folders) == {"job3", "job4", "again"}
    assert not outcome.skipped
    # crashed twice, died once and then trained, trained once for two jobs; a config that cannot work never retried
    assert sorted(marks()) == ["1", "1", "2", "3", "3", "4"]
    crashed, wrong = outcome.failures["job1"], outcome.failures["job2"]
    assert (crashed.reason, wrong.reason) == ("exit status 1", "exit status 2")
    assert "RuntimeError: the disk has melted" in crashed.tail
    assert len(crashed.tail.splitlines()) <= 5
    assert crashed.log is not None
    assert "--- attempt 2 of 2 ---" in crashed.log.read_text()
    assert "peft.rank=999 is above" in wrong.tail
    assert "job 3: killed by signal 9 (SIGKILL); attempt 2 of 2 follows" in said
    assert "running 5 jobs, 2 at a time, 1 CPU thread each" in said
    assert f"job 1: FAILED (exit status 1), see {crashed.log}" in said
    assert "[5/5]" in said
    assert "validation 0." in said or "validation 1." in said
    assert outcome.records["job4"] is not outcome.records["job3"]
    assert outcome.folders["again"] == outcome.folders["job4"]

    stamps = {path: path.stat().st_mtime_ns for path in Path("outputs/odd").glob("*/record.json")}
    Path("events.txt").unlink()
    again = pool.run(FixedPlan(jobs[2:]), PoolOptions(n_parallel=1))
    assert again.skipped == {"job3", "job4", "again"}
    assert capfd.readouterr().out == "3 of 3 jobs are finished already\n"
    assert marks() == []
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    found = pool.finished(FixedPlan(jobs))
    assert set(found.records) == {"job3", "job4", "again"}
    assert not found.failures
    forced = Job("forced", "forced", (*jobs[3].overrides, "force=true"), jobs[3].config_dir)
    assert pool.run(FixedPlan([forced, forced]), PoolOptions()).skipped == set()
    assert marks() == ["4"]


def test_stop_after_the_first_failure(reviews: Path) -> None:
    outcome = pool.run(
        FixedPlan([job(1, "data.act=crash"), job(2), job(3)]), PoolOptions(n_parallel=1, on_error="stop")
    )
    assert not outcome.records
    assert marks() == ["1"]
    assert outcome.failures["job3"].reason == "not run: on_error=stop, and 'job 1' has failed"
    assert outcome.failures["job3"].log is None


def test_a_job_that_does_not_compose_fails_alone(reviews: Path) -> None:
    outcome = pool.run(FixedPlan([job(1, "peft.rnak=2"), job(2, "data.path=nowhere")]))
    assert "peft.rnak" in outcome.failures["job1"].reason
    assert "nowhere" in outcome.failures["job2"].reason


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("n_parallel", 0, "n_parallel=0 is not allowed: it must be a whole number, at least 1, or null."),
        ("n_parallel", True, "n_parallel=True"),
        ("devices_per_job", None, "devices_per_job=None is not allowed: it must be a whole number, at least 1."),
        ("threads_per_job", "2", "threads_per_job='2'"),
        ("retries", -1, "retries=-1 is not allowed: it must be a whole number, at least 0."),
        ("on_error", "contine", "it must be continue or stop. Did you mean 'continue'?"),
    ],
)
def test_options_are_checked(option: str, value: Any, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        PoolOptions(**{option: value})
    assert said in str(error.value)


def test_the_machine_is_divided(monkeypatch: pytest.MonkeyPatch, scratch: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []
    assert (len(Machine.divided(PoolOptions()).slots), Machine.divided(PoolOptions()).threads) == (8, 1)
    assert Machine.divided(PoolOptions(n_parallel=3)).threads == 2
    assert len(Machine.divided(PoolOptions(devices_per_job=4)).slots) == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert Machine.divided(PoolOptions()).threads == 5
    assert Machine.divided(PoolOptions(threads_per_job=7)).threads == 7
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-ab,6,-1,7")
    assert visible_gpus() == ["3", "GPU-ab", "6"], "what follows -1 is not visible"
    assert [slot.gpus for slot in Machine.divided(PoolOptions()).slots] == [("3",), ("GPU-ab",), ("6",)]
    assert [slot.gpus for slot in Machine.divided(PoolOptions(devices_per_job=2)).slots] == [("3", "GPU-ab")]
    with pytest.raises(ConfigError, match="only 3 GPUs"):
        Machine.divided(PoolOptions(devices_per_job=4))
    with pytest.raises(ConfigError, match=r"there are 3 GPUs, so at most n_parallel=1"):
        Machine.divided(PoolOptions(n_parallel=2, devices_per_job=2))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    tool = scratch / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho 'GPU 0: A (UUID: GPU-1)'\necho 'GPU 1: B (UUID: GPU-2)'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    assert visible_gpus() == ["0", "1"]
    tool.write_text("#!/bin/sh\necho 'No devices were found'; exit 6\n")
    assert visible_gpus() == []


def test_each_job_gets_gpus_of_its_own_and_the_threads_it_was_told(
    reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    cpu = "trainer.accelerator=cpu"
    # Each waits until both are there: they share nothing.
    both = [job(number, cpu, "data.act=wait") for number in (1, 2)]
    watch = threading.Thread(target=lambda: (until(lambda: len(events()) == 2, "both run"), Path("go").touch()))
    watch.start()
    outcome = pool.run(FixedPlan([*both, job(3, cpu, "trainer.threads=3")]), PoolOptions(threads_per_job=2))
    watch.join()
    assert len(outcome.records) == 3, outcome.failures
    by_mark = {event["mark"]: event for event in events()}
    assert {by_mark["1"]["gpus"], by_mark["2"]["gpus"]} == {"5", "7"}
    assert by_mark["3"]["gpus"] in ("5", "7")
    threads = {name: record["hardware"]["torch_threads"] for name, record in outcome.records.items()}
    assert threads == {"job1": 2, "job2": 2, "job3": 3}
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5,7"


class Told(Progress):
    """Calls back when the pool says that it waits."""

    def __init__(self, release: threading.Event) -> None:
        super().__init__(console=Console(file=io.StringIO(), width=200))
        self.release = release

    def wait(self, key: str, title: str, holder: str) -> None:
        super().wait(key, title, holder)
        self.release.set()


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_in_other_hands_is_waited_for(reviews: Path, finished: bool) -> None:
    """The other process ends its run, or dies without a record."""
    one = job(1)
    folder, release, held = folder_of(one), threading.Event(), threading.Event()

    def other() -> None:
        with folder.locked():
            held.set()
            release.wait()
            if finished:
                facts = {"schema_version": 1, "status": "finished", "metrics": {}, "note": "by the other"}
                folder.write_record(facts)

    thread = threading.Thread(target=other)
    thread.start()
    held.wait()
    progress = Told(release)
    outcome = pool.run(FixedPlan([one, job(2)]), PoolOptions(n_parallel=1), progress=progress)
    thread.join()
    assert not outcome.failures
    assert (outcome.records["job1"].get("note") == "by the other") is finished
    assert sorted(marks()) == (["2"] if finished else ["1", "2"])
    assert isinstance(progress.console.file, io.StringIO)
    said = progress.console.file.getvalue()
    assert f"job 1: another process ({os.getpid()}) trains this run; waiting for it" in said


def test_a_worker_that_finds_its_run_taken_is_not_a_failure(reviews: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the pool's look at the lock and the worker's own, another launcher was faster."""
    one = job(1)
    folder, looks = folder_of(one), []
    really = RunFolder.held_by

    def not_yet(self: RunFolder) -> Holder | None:
        looks.append(self.path)
        if len(looks) > 3:
            released.set()
        return None if len(looks) == 1 else really(self)

    released, held = threading.Event(), threading.Event()

    def other() -> None:
        with folder.locked():
            held.set()
            released.wait()

    thread = threading.Thread(target=other)
    thread.start()
    held.wait()
    monkeypatch.setattr(RunFolder, "held_by", not_yet)
    outcome = pool.run(FixedPlan([one]), PoolOptions())
    thread.join()
    assert list(outcome.records) == ["job1"]
    log = (folder.path.parent / ".logs" / f"{folder.key}.txt").read_text()
    assert "is in use by process" in log


def test_data_that_change_under_a_sweep_are_noticed(reviews: Path) -> None:
    """The worker computes the key again."""
    first, second = job(1, "data.act=wait"), job(2)

    def change() -> None:
        until(lambda: len(events()) == 1, "the first job runs")
        with reviews.open("a") as file:
            file.write('{"text": "a new one", "label": "good"}\n')
        Path("go").touch()

    thread = threading.Thread(target=change)
    thread.start()
    outcome = pool.run(FixedPlan([first, second]), PoolOptions(n_parallel=1))
    thread.join()
    assert "have changed meanwhile" in outcome.failures["job2"].tail
    assert marks() == ["1"]


def test_skipping_imports_nothing_heavier_than_torch(reviews: Path) -> None:
    one = job(1)
    folder = folder_of(one)
    folder.write_record({"schema_version": 1, "status": "finished", "metrics": {}})
    code = (
        "import sys; from peftlab.sweeps import pool; from peftlab.sweeps.jobs import FixedPlan, Job;"
        f"outcome = pool.run(FixedPlan([Job('a', 'a', {one.overrides!r}, {one.config_dir!r})]));"
        "heavy = {'lightning', 'transformers', 'torchmetrics', 'datasets'} & set(sys.modules);"
        "print(sorted(outcome.skipped), sorted(heavy), sorted(outcome.failures))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "['a'] [] []"


def test_peak_memory_is_the_jobs_own(reviews: Path) -> None:
    """A process that a large one starts begins small; the warm job's peak is about what a cold run's is."""
    code = (
        "import subprocess, sys; block = bytearray(700 * 2**20);"
        "inner = 'from peftlab.records.environment import _peak_resident_mib; print(_peak_resident_mib())';"
        "print(subprocess.run([sys.executable, '-c', inner], capture_output=True, text=True).stdout)"
    )
    small = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert small < 400
    one = job(1)
    warm = pool.run(FixedPlan([one])).records["job1"]["memory"]["peak_mib"]
    command = [sys.executable, "-m", "peftlab", "train", "--config-dir", str(one.config_dir), *one.overrides]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    subprocess.run([*command, "output_dir=apart", "name=cold"], check=True, env=environment, stdout=subprocess.DEVNULL)
    (path,) = Path("apart/cold").glob("*/record.json")
    cold = json.loads(path.read_text())["memory"]["peak_mib"]
    assert 0.7 < warm / cold < 1.3, (warm, cold)


def about_the_server(told: Any) -> None:
    """In a process that is forked from it: what this has inherited, and the threads of its parent."""
    import torch

    tasks = Path(f"/proc/{os.getppid()}/task").iterdir()
    names = [(task / "comm").read_text().strip() for task in tasks]
    threads = len([name for name in names if name != "jemalloc_bg_thd"])
    told.send((threads, torch.cuda.is_initialized(), os.getpgid(os.getppid()) == os.getppid()))


def test_the_server_has_one_thread_and_no_accelerator(scratch: Path) -> None:
    """Its forks are as good as new processes. OpenBLAS's pool, of one here, and jemalloc's thread know of forks."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(processes.PRELOADED)
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=about_the_server, args=(there,))
    process.start()
    assert here.poll(120)
    assert here.recv() == (1, False, True)
    process.join()


def test_a_worker_killed_from_outside(reviews: Path) -> None:
    def kill() -> None:
        until(lambda: len(events()) == 1, "the job runs")
        os.kill(int(events()[0]["pid"]), signal.SIGKILL)
        until(lambda: len(events()) == 2, "it runs again")
        Path("go").touch()

    thread = threading.Thread(target=kill)
    thread.start()
    outcome = pool.run(FixedPlan([job(1, "data.act=wait")]), PoolOptions(retries=1))
    thread.join()
    assert list(outcome.records) == ["job1"]
    assert COMMON[0] in outcome.records["job1"]["argv"]


def test_a_stopped_job_is_killed_when_its_time_is_over(reviews: Path) -> None:
    """Somebody stops it (SIGSTOP), and its slot would be held for ever."""

    def stop() -> None:
        until(lambda: len(events()) == 1, "the job runs", seconds=60)
        os.kill(int(events()[0]["pid"]), signal.SIGSTOP)

    thread = threading.Thread(target=stop)
    thread.start()
    outcome = pool.run(FixedPlan([job(1, "data.act=wait")]), PoolOptions(minutes_per_job=0.15))
    thread.join()
    assert outcome.failures["job1"].reason == "killed after minutes_per_job=0.15"


def test_a_server_that_was_killed_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first connection after its death can fail; another one starts a new server."""
    started: list[int] = []

    def start(self: object) -> None:
        started.append(1)
        if len(started) == 1:
            raise ConnectionRefusedError

    monkeypatch.setattr(ForkServerProcess, "start", start)
    processes.start(JobSpec(values={}, folder="x", arguments=(), threads=1, environment={}, log="x"))
    assert len(started) == 2


def test_a_job_without_memory_runs_again_with_fewer_beside_it(reviews: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    said: list[str] = []
    monkeypatch.setattr(Progress, "say", lambda self, text, more="": said.append(text))
    jobs = [job(1, "data.act=no_memory", "data.once=true"), job(2)]
    outcome = pool.run(FixedPlan(jobs), PoolOptions(jobs_per_device=2))
    assert len(outcome.records) == 2
    assert any("job 1: out of memory; 1 at a time on a GPU from now on; it runs again" in line for line in said)
    outcome = pool.run(FixedPlan([job(3, "data.act=no_memory")]), PoolOptions(jobs_per_device=1))
    assert outcome.failures["job3"].reason == "the GPU's memory is too small for it"
    assert outcome.failures["job3"].log is not None
    assert "Lower data.batch_size" in outcome.failures["job3"].log.read_text(encoding="utf-8")
