"""Several equal workers on one folder: what others have at work is left to them, and the last one finds all."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from peftlab.records.folder import RunFolder
from peftlab.sweeps import beside, pool, roster
from peftlab.sweeps.cache import ConfigCache
from peftlab.sweeps.jobs import FixedPlan, Job, Outcome
from peftlab.sweeps.slots import PoolOptions
from tests.sweeps.pool_helpers import events, job


@pytest.fixture
def held(reviews: Path) -> RunFolder:
    """The folder of job 1."""
    return RunFolder.of(ConfigCache().config(job(1)))


def run_beside(held: RunFolder, plan: FixedPlan) -> Outcome:
    """Run ``plan`` while somebody else holds job 1, until the pool ends by itself."""
    found: list[Outcome] = []
    with held.locked():
        worker = threading.Thread(target=lambda: found.append(pool.run(plan, PoolOptions(n_parallel=1))))
        worker.start()
        worker.join(120)
        assert not worker.is_alive()
    return found[0]


def test_a_worker_ends_when_the_rest_is_at_work_elsewhere(held: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(beside.WORKER, "45_0")
    outcome = run_beside(held, FixedPlan([job(1), job(2)]))
    assert outcome.elsewhere == {"job1"}
    assert list(outcome.records) == ["job2"]
    assert not outcome.failures
    last = pool.run(FixedPlan([job(1), job(2)]))
    assert set(last.records) == {"job1", "job2"}
    assert sorted(event["mark"] for event in events()) == ["1", "2"]


def test_what_the_other_has_just_finished_is_taken(held: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lock may outlast its record for a moment: the last worker must not leave without a table."""
    pool.run(FixedPlan([job(1)]))
    record = held.record.read_bytes()
    held.record.unlink()
    monkeypatch.setenv(beside.WORKER, "45_0")
    really = pool._Pool._leave_elsewhere

    def finishing(self: object, *given: object) -> None:
        held.record.write_bytes(record)
        really(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(pool._Pool, "_leave_elsewhere", finishing)
    outcome = run_beside(held, FixedPlan([job(1)]))
    assert list(outcome.records) == ["job1"]
    assert not outcome.elsewhere


class Staged(FixedPlan):
    """Job 2 is known when job 1 has ended."""

    def total(self) -> int:
        return 2

    def ready(self, outcome: Outcome) -> list[Job]:
        known = [job(1), *([job(2)] if "job1" in outcome.records else [])]
        new = known[len(self.jobs) :]
        self.jobs = [*self.jobs, *new]
        return new


def test_a_worker_waits_where_more_is_to_come(held: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(beside.WORKER, "45_0")
    waits = threading.Event()
    found: list[Outcome] = []
    really = pool._Pool._leave_elsewhere

    def told(self: object, *given: object) -> None:
        really(self, *given)  # type: ignore[arg-type]
        waits.set()

    monkeypatch.setattr(pool._Pool, "_leave_elsewhere", told)
    plan = Staged([])
    with held.locked():
        worker = threading.Thread(target=lambda: found.append(pool.run(plan, PoolOptions(n_parallel=1))))
        worker.start()
        assert waits.wait(120)
        worker.join(1.5)
        assert worker.is_alive()
    worker.join(120)
    assert set(found[0].records) == {"job1", "job2"}


def test_what_is_to_be_made_is_listed(held: RunFolder) -> None:
    folder = held.path.parent
    failing = job(2, "data.act=crash")
    pool.run(FixedPlan([job(1), failing]), PoolOptions(n_parallel=1))
    named = roster.read(folder)
    coming = named.pop("")
    assert coming.title == "0"
    assert [(entry.title, bool(entry.failed)) for entry in named.values()] == [("job 1", False), ("job 2", True)]
    before = (folder / roster.NAME).read_bytes()
    (folder / roster.NAME).write_bytes(before + b'{"run": "half')
    roster.note(folder, [roster.Entry("new", "job 3")])
    assert roster.read(folder)["new"].title == "job 3"
    assert (folder / roster.NAME).read_bytes().startswith(before)
    roster.note(folder, [roster.Entry("new", "job 3")])
    assert (folder / roster.NAME).read_bytes().count(b"job 3") == 1


def test_what_failed_in_a_worker_is_not_tried_by_all_others(reviews: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = job(1, "data.act=crash")
    for worker, tries in (("45_0", 1), ("45_1", 1), ("46_0", 2)):
        monkeypatch.setenv(beside.WORKER, worker)
        outcome = pool.run(FixedPlan([failing]), PoolOptions(n_parallel=1))
        assert outcome.failures["job1"].reason == "exit status 1"
        assert "the disk has melted" in outcome.failures["job1"].tail
        assert len(events()) == tries
