"""Jobs that share GPUs: how many, and which one the next job goes to."""

from __future__ import annotations

import os

import pytest

from peftlab.errors import ConfigError
from peftlab.sweeps.sharing import Sharing
from peftlab.sweeps.slots import Machine, PoolOptions, Slot


def test_jobs_share_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    slots = Machine.divided(PoolOptions(jobs_per_device=3)).slots
    assert sorted(slot.gpus for slot in slots) == [("0",)] * 3 + [("1",)] * 3
    assert Machine.divided(PoolOptions(jobs_per_device=3)).title.endswith(", on GPU 0 (3 jobs), GPU 1 (3 jobs)")
    assert Machine.divided(PoolOptions()).title.endswith(", on GPU 0, GPU 1")
    assert len(Machine.divided(PoolOptions(jobs_per_device=3, n_parallel=4)).slots) == 4
    assert len(Machine.divided(PoolOptions(jobs_per_device=None)).slots) == 8, "one for each CPU at most"
    with pytest.raises(ConfigError, match=r"at most n_parallel=6"):
        Machine.divided(PoolOptions(jobs_per_device=3, n_parallel=7))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ConfigError, match="no GPU here that jobs could share"):
        Machine.divided(PoolOptions(jobs_per_device=2))


def test_the_next_job_goes_where_there_are_fewest() -> None:
    first, second, third, fourth = (Slot(i, (str(i % 2),)) for i in range(4))
    sharing = Sharing(2, 4)
    assert sharing.place([fourth, third, second, first], []) == first
    assert sharing.place([fourth, third, second], [first]) == second
    assert sharing.place([fourth, third], [first, second]) == third
    assert sharing.place([], [first, second, third, fourth]) is None
    assert sharing.lower(first, [second, fourth]) == "out of memory; 1 at a time on a GPU from now on"
    assert sharing.place([third], [second]) == third, "GPU 0 is empty now"
    assert sharing.place([third, fourth], [first, second]) is None
    assert sharing.lower(third, [second]) == "", "one alone was too many"


def test_how_many_share_a_gpu_follows_from_what_one_took() -> None:
    sharing = Sharing(None, 16, lambda: {"0": 80_000.0})
    assert sharing.limit == 1
    assert "8 at a time on each (jobs_per_device=8" in sharing.learn({"memory": {"peak_gpu_mib": 6_000.0}})
    # 0.9 · 80,000 MiB for jobs of 1.25 · 6,000 + 700 MiB each
    assert sharing.limit == 8
    assert sharing.learn({"memory": {"peak_gpu_mib": 5_000.0}}) == "", "the largest decides"
    sharing.learn({"memory": {"peak_gpu_mib": 60_000.0}})
    assert sharing.limit == 1
    small = Sharing(None, 16, lambda: {"0": 80_000.0})
    small.learn({"memory": {"peak_gpu_mib": 100.0}})
    assert small.limit == 16
    assert Sharing(4, 4, lambda: {"0": 80_000.0}).learn({"memory": {"peak_gpu_mib": 100.0}}) == "", "it was said"
