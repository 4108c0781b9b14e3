"""Ctrl-C is heard wherever Python happens to be when it comes."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from peftlab.sweeps import pool
from peftlab.sweeps.interrupts import Interrupts
from peftlab.sweeps.jobs import FixedPlan
from peftlab.sweeps.progress import Progress
from peftlab.sweeps.slots import PoolOptions
from tests.sweeps.pool_helpers import events, job


@pytest.fixture(autouse=True)
def pythons_own_handler() -> Iterator[None]:
    """A shell's background job, which the tests may be, ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, "what was heard meanwhile is put back"
    signal.signal(signal.SIGINT, before)


class Dropped:
    """Ctrl-C comes while this is finalized, where Python drops what is raised."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)


def test_one_that_comes_in_a_finalizer_is_not_lost() -> None:
    with Interrupts() as interrupts:
        interrupts.check()
        Dropped()
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()
    assert interrupts.count == 1


def test_one_that_comes_in_a_finalizer_ends_a_sweep(reviews: Path) -> None:
    class Finalizing(Progress):
        def finish(self, key: str, title: str, record: dict[str, Any]) -> None:
            super().finish(key, title, record)
            Dropped()

    with pytest.raises(KeyboardInterrupt):
        pool.run(FixedPlan([job(1), job(2)]), PoolOptions(n_parallel=1), progress=Finalizing())
    assert [event["mark"] for event in events()] == ["1"]


def test_waiting_ends_when_it_comes() -> None:
    reader, writer = os.pipe()
    with Interrupts() as interrupts:
        assert interrupts.wait([reader], 0.01) == []
        timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        began = time.monotonic()
        assert interrupts.wait([reader], 60) == []
        assert time.monotonic() - began < 50
        assert interrupts.count == 1
        os.write(writer, b"x")
        assert interrupts.wait([reader], 60) == [reader]
        timer.join(60)
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda number, frame: None])
def test_another_handler_stays(handler: Any) -> None:
    signal.signal(signal.SIGINT, handler)
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGINT)
        interrupts.check()
        assert signal.getsignal(signal.SIGINT) is handler
    assert signal.getsignal(signal.SIGINT) is handler
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_beside_the_main_thread_nothing_is_heard() -> None:
    def beside() -> None:
        with Interrupts() as interrupts:
            counts.append(interrupts.count)

    counts: list[int] = []
    thread = threading.Thread(target=beside)
    thread.start()
    thread.join(60)
    assert counts == [0]
