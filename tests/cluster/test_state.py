"""How a folder stands, from records, locks, the list of jobs and the queue."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from peftlab.cluster.ledger import Ledger
from peftlab.cluster.state import folder_state
from peftlab.commands.status import tell
from peftlab.errors import RunError
from peftlab.records.folder import RunFolder
from peftlab.report.render.terminal import PlainConsole
from peftlab.sweeps import roster
from tests.cluster.conftest import FakeSlurm
from tests.conftest import Peftlab

SWEEP = Path("outputs/small")


def record(key: str, status: str, **more: str) -> RunFolder:
    folder = RunFolder(SWEEP / key)
    folder.path.mkdir(parents=True)
    folder.write_record({"schema_version": 1, "status": status, "name": "small", **more})
    return folder


@pytest.fixture
def sweep(scratch: Path) -> Path:
    """A run in each state."""
    record("done", "finished").metrics.write_text("epoch,loss\n0,1\n1,1\n")
    record("diverged", "diverged")
    record("failed", "failed", error="DataError: no such file")
    record("interrupted", "interrupted")
    lost = RunFolder(SWEEP / "lost")
    lost.path.mkdir()
    lost.lock.write_text(json.dumps({"pid": "7", "host": "gone", "job": "45_1"}))
    os.utime(lost.lock, (0, 0))
    lost.metrics.write_text("epoch,loss\n0,1\n")
    titles = ("done", "diverged", "failed", "interrupted", "lost", "new", "crashed", "running")
    roster.note(SWEEP, [*(roster.Entry(key, f"the {key}") for key in titles), roster.Entry("", "3")])
    roster.note(SWEEP, [roster.Entry("crashed", "the crashed", "killed by signal 9 (SIGKILL)")])
    return SWEEP


def test_each_run_has_one_state(sweep: Path) -> None:
    with RunFolder(sweep / "running").locked():
        state = folder_state(str(sweep))
    found = {run.title: (run.state, run.epochs, run.about) for run in state.runs}
    process = found["the running"][2]
    assert process.startswith("process ")
    assert found == {
        "the done": ("done", 2, ""),
        "the diverged": ("done", 0, "its training diverged"),
        "the failed": ("failed", 0, "DataError: no such file"),
        "the interrupted": ("queued", 0, "interrupted; it resumes"),
        "the lost": ("lost", 1, "process 7 on gone, Slurm job 45_1 is gone; started again, it resumes"),
        "the new": ("queued", 0, ""),
        "the crashed": ("failed", 0, "killed by signal 9 (SIGKILL)"),
        "the running": ("running", 0, process),
    }
    assert state.sum() == {"running": 1, "queued": 5, "failed": 2, "lost": 1, "done": 2, "total": 11}
    assert folder_state("outputs").sum() == folder_state(str(sweep)).sum()


def test_workers_are_those_of_the_folder(sweep: Path, slurm: FakeSlurm) -> None:
    ledger = Ledger(sweep)
    with ledger.held():
        one = ledger.intend("call", 2, "abc")
    slurm.queue = [
        f"45_0|RUNNING|None|n1|peftlab:{one.token}",
        f"45_1|PENDING|Resources||peftlab:{one.token}",
        f"45_2|FAILED|NonZeroExitCode|n1|peftlab:{one.token}",
        "46_0|RUNNING|None|n1|peftlab:another",
        "47|RUNNING|None|n1|(null)",
    ]
    state = folder_state(str(sweep))
    assert [(worker.id, worker.state, worker.reason, worker.nodes) for worker in state.workers] == [
        ("45_0", "RUNNING", "None", "n1"),
        ("45_1", "PENDING", "Resources", ""),
    ]
    slurm.queue = []
    assert folder_state(str(sweep)).notes == (
        "no worker is in the queue: the command that submitted it sends those that are missing.",
    )
    slurm.says("down", "slurm_load_jobs error: Unable to contact slurm controller")
    assert "is not known: squeue does not answer" in folder_state(str(sweep)).notes[0]


def test_it_fits_into_80_columns(sweep: Path) -> None:
    title = "a cell with a title of some length, rank 16, alpha 32, seed 11"
    roster.note(SWEEP, [roster.Entry("long", title)])
    out = io.StringIO()
    tell(folder_state(str(sweep)), PlainConsole(width=80, file=out, force_terminal=False))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert "killed by signal 9" in " ".join(out.getvalue().split())


def test_the_command_prints_or_gives_json(sweep: Path, peftlab: Peftlab) -> None:
    shown = peftlab("status", str(sweep))
    assert shown.status == 0
    assert shown.out.splitlines()[-1] == "outputs/small: 11 runs: 6 queued, 2 failed, 1 lost, 2 done"
    found = json.loads(peftlab("status", "outputs/small", "--json").out)
    assert found["sum"]["total"] == 11
    assert {run["state"] for run in found["runs"]} == {"queued", "failed", "lost", "done"}


def test_what_is_no_folder_of_runs(scratch: Path) -> None:
    (scratch / "empty").mkdir()
    with pytest.raises(RunError, match="'empty' holds no runs, and nothing was submitted for it"):
        folder_state("empty")
    with pytest.raises(RunError, match="there is no folder 'none'"):
        folder_state("none")


def test_it_imports_no_torch(sweep: Path) -> None:
    code = (
        "import sys; from peftlab.cli import main; assert main(['status', 'outputs/small']) == 0; "
        "assert not {'torch', 'lightning', 'transformers', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_it_reads_folders_and_imports_no_config(scratch: Path) -> None:
    """Half a second of Hydra and pydantic, which nothing of it needs: 1,000 runs are told in one."""
    (scratch / "t/key").mkdir(parents=True)
    (scratch / "t/key/record.json").write_text('{"schema_version": 1, "status": "failed", "key": "key", "name": "t"}')
    code = (
        "import sys; from peftlab.cluster.state import folder_state; from peftlab.commands import status; "
        "assert folder_state('t').sum()['failed'] == 1; "
        "print({name.partition('.')[0] for name in sys.modules} & {'hydra', 'omegaconf', 'pydantic', 'torch', 'numpy'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "set()\n", done.stderr
