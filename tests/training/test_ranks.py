"""Who starts the processes of a run, what they agree on before they begin, and what the environment may say besides."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.fabric.plugins.environments.lightning import find_free_network_port

from peftlab.errors import ConfigError, PeftlabError
from peftlab.machine import cpus, visible_gpus
from peftlab.training.config import TrainerConfig
from peftlab.training.meeting import Decision, Meeting, address
from peftlab.training.ranks import FOLLOWS, Ranks, of_its_own, world_size
from tests.conftest import TINY, Peftlab, run_folder

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "x", "RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "a", "MASTER_PORT": "1",
}  # fmt: skip
SRUN = {
    "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "1", "SLURM_STEP_NUM_TASKS": "6", "SLURM_STEP_NUM_NODES": "2",
    "SLURM_PROCID": "4", "SLURM_LOCALID": "1", "SLURM_STEP_NODELIST": "gpu[07-08]",
}  # fmt: skip
BATCH = {
    "SLURM_JOB_ID": "7",
    "SLURM_NTASKS": "2",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Ranks()),
        (TORCHRUN, Ranks("torchrun", 3, 1, 4, 2)),
        (SRUN, Ranks("srun", 4, 1, 6, 2)),
        (SRUN | {"SLURM_STEP_NUM_TASKS": "1"}, Ranks()),
        (BATCH, Ranks()),
        ({"RANK": "1", "LOCAL_RANK": "1", "SLURM_PROCID": "1", "WORLD_SIZE": "2"}, Ranks()),
        ({"LOCAL_RANK": "2", FOLLOWS: f"0123456789ab {os.getppid()}"}, Ranks("peftlab", 2, 2)),
        ({"LOCAL_RANK": "2", FOLLOWS: f"0123456789ab {os.getpid()}"}, Ranks()),
    ],
    ids=["alone", "torchrun", "srun", "a step of one", "a batch script", "left over", "started by rank 0", "rank 0"],
)
def test_one_rule_for_who_starts_ranks(environment: dict[str, str], expected: Ranks) -> None:
    assert Ranks.here(environment) == expected


def test_a_process_of_its_own_knows_nothing_of_a_group() -> None:
    whole = TORCHRUN | SRUN | {FOLLOWS: "k", "HOME": "h", "SLURM_JOB_NAME": "n"}
    assert Ranks.here(of_its_own(whole)) == Ranks()
    kept = {"HOME", "SLURM_JOB_ID", "SLURM_JOB_NAME", "SLURM_STEP_ID", "SLURM_STEP_NUM_NODES", "SLURM_STEP_NODELIST"}
    assert set(of_its_own(whole)) == kept


@pytest.mark.parametrize(
    ("ranks", "given", "gpus", "devices", "world"),
    [
        (Ranks(), {"devices": "auto", "accelerator": "cpu"}, None, "auto", 1),
        (Ranks(), {"devices": "auto"}, 1, "auto", 1),
        (Ranks(), {"devices": "auto"}, 4, 4, 4),
        (Ranks(), {"devices": 2}, 4, 2, 2),
        (Ranks("srun", 0, 0, 6, 2), {"devices": "auto", "num_nodes": 2, "accelerator": "cpu"}, None, 3, 6),
    ],
)
def test_auto_is_a_number_where_it_means_several(
    ranks: Ranks, given: dict[str, Any], gpus: int | None, devices: int | str, world: int
) -> None:
    settled = ranks.settle(TrainerConfig(**given), gpus=gpus)
    assert settled.devices == devices
    assert world_size(settled) == world
    ranks.require(settled)


@pytest.mark.parametrize(
    ("ranks", "given", "said"),
    [
        (Ranks(), {"num_nodes": 2}, "srun --nodes=2 --ntasks-per-node=1 peftlab train"),
        (Ranks("srun", 0, 0, 2, 1), {}, r"srun has started 2 processes on 1 node, .* Set trainer.devices=2"),
        (Ranks("torchrun", 0, 0, 4, 2), {"devices": 4}, r"on 2 nodes, .* trainer.devices=2 and trainer.num_nodes=2"),
    ],
)
def test_other_processes_than_were_asked_for_are_refused(ranks: Ranks, given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ranks.require(TrainerConfig(**given))


def test_steps_of_one_job_meet_at_places_of_their_own() -> None:
    ranks = Ranks("srun", 0, 0, 6, 2)
    first, second = (address(ranks, SRUN | {"SLURM_STEP_ID": str(step)}) for step in (0, 1))
    assert first[0] == second[0] == "gpu07"
    assert abs(first[1] - second[1]) > 1
    assert address(ranks, SRUN | {"MASTER_ADDR": "b", "MASTER_PORT": "5"}) == ("b", 5)


def together(parts: list[Callable[[], Any]]) -> list[Any]:
    """What each part returned or raised, each in a thread of its own."""
    found: list[Any] = [None] * len(parts)

    def run(number: int) -> None:
        try:
            found[number] = parts[number]()
        except (PeftlabError, SystemExit) as error:
            found[number] = error

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "somebody waits for ever"
    return found


def meet(decision: Decision, keys: list[str]) -> list[Any]:
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_network_port())}

    def first() -> None:
        meeting = Meeting(Ranks("srun", 0, 0, len(keys) + 1, 1), where)
        try:
            meeting.tell(decision)
        finally:
            meeting.end(0)

    def other(rank: int) -> Decision:
        meeting = Meeting(Ranks("srun", rank, rank, len(keys) + 1, 1), where)
        try:
            return meeting.hear(keys[rank - 1])
        finally:
            meeting.leave()

    return together([first, *(lambda rank=rank: other(rank) for rank in range(1, len(keys) + 1))])  # type: ignore[misc]


def test_all_know_what_rank_0_has_found() -> None:
    go = Decision(train=True, key="k", folder="outputs/a/k", resume=True)
    assert meet(go, ["k", "k"]) == [None, go, go]
    finished = Decision(train=False, status=0)
    assert meet(finished, ["k", "other"]) == [None, finished, finished]


def test_rank_0_is_there_until_the_others_know_that_all_went_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """A watch that reads slowly must not find the store gone, and take the end of rank 0 for its failure."""
    read, ended = Meeting._read_end, []

    def slowly(meeting: Meeting) -> int:
        time.sleep(1)
        return read(meeting)

    monkeypatch.setattr(Meeting, "_read_end", slowly)
    monkeypatch.setattr(os, "_exit", ended.append)
    go = Decision(train=True, key="k")
    assert meet(go, ["k", "k"]) == [None, go, go]
    assert ended == []


def test_a_rank_that_would_train_another_run_stops_all() -> None:
    first, *others = meet(Decision(train=True, key="k"), ["k", "other"])
    assert "rank 2 has composed the run other, and rank 0 k" in str(first)
    assert [decision.train for decision in others] == [False, False]


AT = {"MASTER_ADDR": "127.0.0.1"}


@pytest.mark.parametrize(
    ("rank", "where", "said"),
    [
        (1, AT, "rank 1 of 2 cannot reach rank 0 at 127.0.0.1:"),
        (1, {"MASTER_ADDR": "no-such-host.invalid"}, "rank 1 of 2 cannot reach rank 0 at no-such-host.invalid:"),
        (0, {"MASTER_ADDR": "no-such-host.invalid"}, "rank 0 of 2 cannot reach rank 0 at no-such-host.invalid:"),
    ],
)
def test_the_first_word_is_not_waited_for_long(rank: int, where: dict[str, str], said: str) -> None:
    environment = {**where, "MASTER_PORT": str(find_free_network_port()), "PEFTLAB_MEETING_MINUTES": "0.01"}
    with pytest.raises(PeftlabError, match=said) as caught:
        Meeting(Ranks("srun", rank, rank, 2, 1), environment)
    assert "PEFTLAB_MEETING_MINUTES waits longer than these 0.01 minutes" in str(caught.value)


def test_a_rank_that_does_not_come_is_named() -> None:
    environment = {**AT, "MASTER_PORT": str(find_free_network_port()), "PEFTLAB_MEETING_MINUTES": "0.01"}
    meeting = Meeting(Ranks("srun", 0, 0, 2, 1), environment)
    with pytest.raises(PeftlabError, match=r"rank 1 did not come: .*MASTER_ADDR"):
        meeting.tell(Decision(train=True, key="k"))


@pytest.mark.parametrize("minutes", ["0", "-1", "soon", "nan", "9999"])
def test_how_long_that_is_must_be_minutes(minutes: str) -> None:
    with pytest.raises(PeftlabError, match=f"PEFTLAB_MEETING_MINUTES={minutes}: a number of minutes"):
        Meeting(Ranks("srun", 1, 1, 2, 1), {**AT, "PEFTLAB_MEETING_MINUTES": minutes})


def test_torchrun_trains_once_and_finds_it_finished(peftlab: Peftlab, reviews: Path) -> None:
    run = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "peftlab", "train",
        *TINY, f"data.path={reviews}", "trainer.max_epochs=1", "trainer.accelerator=cpu", "trainer.devices=2", "name=t",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for said in ("epoch 1/1", "is finished already"):
        done = subprocess.run(run, capture_output=True, text=True, env=environment, timeout=240, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count(said) == 1
    record = json.loads((run_folder("t") / "record.json").read_text())
    assert record["processes"] == 2
    assert record["metrics"]["test"]["rows"] == 24


def test_variables_that_others_left_change_nothing(
    peftlab: Peftlab, reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a batch script where Lightning's own requeue has left a checkpoint of another moment."""
    for name, value in {**BATCH, "SLURM_JOB_NAME": "x", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    common = ("train", *TINY, f"data.path={reviews}", "trainer.max_epochs=1", "name=t")
    assert peftlab(*common).status == 0
    folder = run_folder("t")
    record = json.loads((folder / "record.json").read_text())
    assert record["processes"] == 1
    (folder / "record.json").unlink()
    (folder / "hpc_ckpt_1.ckpt").write_bytes(b"of another moment")
    assert peftlab(*common).status == 0
    again = json.loads((folder / "record.json").read_text())
    assert again["metrics"] == record["metrics"]


def test_slurms_share_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)
    assert cpus() == 8
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "4")
    assert cpus() == 4
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "2")
    assert cpus() == 2
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "16")
    assert cpus() == 8
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "NoDevFiles")
    assert visible_gpus() == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1,3")
    assert visible_gpus() == ["MIG-1", "3"]
