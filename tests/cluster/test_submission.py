"""Submitting: once for each worker that is missing, whatever died in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from peftlab.cluster import slurm as programs
from peftlab.cluster import submission
from peftlab.cluster.ledger import Ledger
from peftlab.cluster.settings import Cluster
from peftlab.cluster.slurm import SlurmError
from peftlab.cluster.submission import submit
from peftlab.cluster.work import Work
from peftlab.errors import ConfigError
from peftlab.sweeps import roster
from tests.cluster.conftest import FakeSlurm

CLUSTER = Cluster(workers=4)


@pytest.fixture
def work(tmp_path: Path) -> Work:
    (tmp_path / "small.yaml").write_text("cells: []\n")
    return Work(
        title="small",
        folder=tmp_path / "out puts" / "100%",
        call="call",
        command=lambda snapshot: ["sweep", str(snapshot / "sweep.yaml")],
        total=8,
        runs=tuple(roster.Entry(f"key{number}", f"run {number}") for number in range(6)),
        files={"sweep.yaml": tmp_path / "small.yaml"},
    )


@pytest.fixture(autouse=True)
def without_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the code: another file tests them."""

    def take(place: Path, files: Any) -> Path:
        place.mkdir(parents=True, exist_ok=True)
        return place / "abc"

    monkeypatch.setattr("peftlab.cluster.snapshot.take", take)


def killed(*_: Any, **__: Any) -> str:
    raise KeyboardInterrupt


def tokens(slurm: FakeSlurm) -> set[str]:
    return {line.partition(programs.MARK)[2] for line in slurm.queue}


def test_an_array_with_a_token_for_what_is_missing(work: Work, slurm: FakeSlurm, tmp_path: Path) -> None:
    done = submit(work, CLUSTER, cwd=tmp_path)
    assert (done.sent, done.job, done.to_run, done.living) == (4, "1", 6, ())
    (one,) = Ledger(work.folder).submissions()
    assert (one.job, one.workers, one.snapshot) == ("1", 4, "abc")
    place = work.folder / ".slurm"
    assert set(slurm.options) >= {
        "--parsable", f"--comment=peftlab:{one.token}", "--array=0-3", "--requeue", "--signal=B:USR1@120",
        f"--chdir={tmp_path}", f"--output={place}/logs/{one.token}-%A_%a.txt".replace("100%", "100%%"), "--nodes=1",
    }  # fmt: skip
    assert slurm.options[-1] == str(place / f"{one.token}.sh")
    assert f"'{place}/snapshots/abc/sweep.yaml'" in Path(slurm.options[-1]).read_text()
    assert [entry.title for entry in roster.read(work.folder).values()] == [f"run {number}" for number in range(6)]


def test_the_same_again_sends_nothing(work: Work, slurm: FakeSlurm, tmp_path: Path) -> None:
    submit(work, CLUSTER, cwd=tmp_path)
    again = submit(work, CLUSTER, cwd=tmp_path)
    assert again.sent == 0
    assert [worker.id for worker in again.living] == ["1_0", "1_1", "1_2", "1_3"]
    assert slurm.arrays == 1


@pytest.mark.parametrize("state", ["COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"])
def test_workers_that_have_ended_are_replaced(work: Work, slurm: FakeSlurm, tmp_path: Path, state: str) -> None:
    submit(work, CLUSTER, cwd=tmp_path)
    slurm.queue = [line.replace("PENDING", state) if line < "1_2" else line for line in slurm.queue]
    again = submit(work, CLUSTER, cwd=tmp_path)
    assert (again.sent, again.job, len(again.living)) == (2, "2", 2)
    assert "--array=0-1" in slurm.options


def test_no_more_workers_than_runs(work: Work, slurm: FakeSlurm, tmp_path: Path) -> None:
    assert submit(work, Cluster(workers=9), cwd=tmp_path).sent == 6


def test_other_words_are_other_work(work: Work, slurm: FakeSlurm, tmp_path: Path) -> None:
    submit(work, CLUSTER, cwd=tmp_path)
    other = Work(**{**vars(work), "call": "other"})
    assert submit(other, CLUSTER, cwd=tmp_path).sent == 4


def test_a_launcher_that_died_before_sbatch_loses_nothing(
    work: Work, slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(programs, "sbatch", killed)
        with pytest.raises(KeyboardInterrupt):
            submit(work, CLUSTER, cwd=tmp_path)
    assert submit(work, CLUSTER, cwd=tmp_path).sent == 4
    assert slurm.arrays == 1
    first, second = Ledger(work.folder).submissions()
    assert first.refused
    assert second.job == "1"


@pytest.mark.parametrize("ended", [False, True])
def test_a_launcher_that_died_after_sbatch_doubles_nothing(
    work: Work, slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: bool
) -> None:
    """Its job is found in the queue; if Slurm has forgotten it already, its logs are there."""
    really = programs.sbatch

    def dies(*given: Any, **more: Any) -> str:
        really(*given, **more)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(programs, "sbatch", dies)
        with pytest.raises(KeyboardInterrupt):
            submit(work, CLUSTER, cwd=tmp_path)
    if ended:
        slurm.queue = []
        (token,) = (one.token for one in Ledger(work.folder).submissions())
        (work.folder / ".slurm" / "logs" / f"{token}-1_0.txt").write_text("")
    again = submit(work, CLUSTER, cwd=tmp_path)
    assert again.sent == (4 if ended else 0)
    assert again.notes == ("found job 1, whose launcher ended before it knew the number.",)
    assert Ledger(work.folder).submissions()[0].job == "1"


def test_a_refusal_is_sbatchs_own_and_leaves_nothing(work: Work, slurm: FakeSlurm, tmp_path: Path) -> None:
    words = "sbatch: error: invalid partition specified: gpux\nsbatch: error: Batch job submission failed"
    slurm.says("refusal", words)
    with pytest.raises(SlurmError, match="invalid partition specified: gpux"):
        submit(work, CLUSTER, cwd=tmp_path)
    assert not work.folder.parent.exists()
    slurm.works()
    submit(work, CLUSTER, cwd=tmp_path)
    slurm.queue = []
    slurm.says("refusal", words)
    with pytest.raises(SlurmError):
        submit(work, CLUSTER, cwd=tmp_path)
    assert [bool(one.refused) for one in Ledger(work.folder).submissions()] == [False, True], "what was taken stays"


def test_an_answer_that_was_lost_is_looked_for_in_the_queue(work: Work, slurm: FakeSlurm, tmp_path: Path) -> None:
    slurm.says("lost", "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation")
    assert submit(work, CLUSTER, cwd=tmp_path).job == "1"


def test_a_lost_answer_without_a_job_is_a_refusal(
    work: Work, slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submission, "LOOKS", 2)
    slurm.says("refusal", "sbatch: error: Socket timed out on send/recv operation")
    with pytest.raises(SlurmError, match="Socket timed out"):
        submit(work, CLUSTER, cwd=tmp_path)


def test_while_the_queue_is_not_known_nothing_is_sent(work: Work, slurm: FakeSlurm, tmp_path: Path) -> None:
    slurm.says("down", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
    with pytest.raises(SlurmError, match=r"squeue does not answer: .*Unable to contact slurm controller"):
        submit(work, CLUSTER, cwd=tmp_path)
    assert slurm.arrays == 0
    assert not work.folder.parent.exists()


def test_what_is_finished_needs_no_slurm(work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    done = Work(**{**vars(work), "runs": ()})
    assert submit(done, CLUSTER, cwd=tmp_path).to_run == 0
    with pytest.raises(ConfigError, match="there is no sbatch on the PATH: this machine submits to no Slurm"):
        submit(work, CLUSTER, cwd=tmp_path)
    assert not work.folder.parent.exists()


def test_workers_must_have_the_nodes_of_a_run(work: Work, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.num_nodes=1, and a worker has nodes=2: --set nodes=1"):
        submit(work, Cluster(nodes=2), cwd=tmp_path)


def test_an_allocation_around_the_launcher_is_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    for name in ("SLURM_JOB_ID", "SLURM_CPUS_PER_TASK", "SLURM_MEM_PER_NODE", "RANK"):
        monkeypatch.setenv(name, "1")
    kept = programs.environment()
    assert kept["SLURM_CONF"] == "/etc/slurm.conf"
    assert not {"SLURM_JOB_ID", "SLURM_CPUS_PER_TASK", "SLURM_MEM_PER_NODE", "RANK"} & set(kept)


def test_of_an_earlier_submission_the_copy_stays_while_slurm_knows_its_workers(
    work: Work, slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = work.folder / ".slurm/snapshots"

    def send(name: str) -> set[str]:
        def take(place: Path, files: Any) -> Path:
            (place / name).mkdir(parents=True, exist_ok=True)
            return place / name

        monkeypatch.setattr("peftlab.cluster.snapshot.take", take)
        submit(work, CLUSTER, cwd=tmp_path)
        return {path.name for path in place.iterdir()}

    assert send("first") == {"first"}
    slurm.queue = [line.replace("PENDING", "FAILED") for line in slurm.queue]
    assert send("second") == {"first", "second"}, "it may be queued again by hand"
    slurm.queue = []
    assert send("third") == {"third"}
