"""The ledger: whole after any death of a launcher."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from peftlab.cluster import ledger as module
from peftlab.cluster.ledger import Ledger
from peftlab.errors import RunError


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "outputs" / "small")


def test_what_was_noted_is_read(ledger: Ledger) -> None:
    with ledger.held():
        one, two, three = (ledger.intend("call", 4, "abc") for _ in range(3))
        ledger.submitted(one, "45")
        ledger.refused(two, "no such partition")
    found = {submission.token: submission for submission in ledger.submissions()}
    assert len(found) == 3
    assert (found[one.token].job, found[one.token].open) == ("45", False)
    assert (found[two.token].refused, found[two.token].open) == ("no such partition", False)
    assert found[three.token].open
    assert (found[three.token].call, found[three.token].workers, found[three.token].snapshot) == ("call", 4, "abc")


@pytest.mark.parametrize("kept", [1, 30, -1])
def test_half_a_line_is_none_and_the_next_stands_alone(ledger: Ledger, kept: int) -> None:
    with ledger.held():
        one = ledger.intend("call", 4, "abc")
        ledger.intend("call", 1, "abc")
    whole, half = ledger.file.read_bytes().splitlines(keepends=True)
    ledger.file.write_bytes(whole + half[:kept])
    with ledger.held():
        ledger.submitted(one, "45")
    lines = ledger.file.read_text().splitlines()
    assert json.loads(lines[-1])["job"] == "45"
    assert ledger.submissions()[0].job == "45"


def test_whoever_submits_is_alone_and_what_it_started_holds_on(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher that is killed leaves its sbatch: nobody looks into the queue before that has answered."""
    monkeypatch.setattr(module, "ATTEMPTS", 2)
    with ledger.held():
        assert ledger.lock is not None
        sbatch = subprocess.Popen(
            [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(ledger.lock.fileno(),)
        )
        with pytest.raises(RunError, match="another launcher"):
            ledger.held().__enter__()
    with pytest.raises(RunError, match="another launcher"):
        ledger.held().__enter__()
    sbatch.communicate(b"\n", timeout=60)
    with ledger.held():
        pass


def test_another_file_is_no_ledger(ledger: Ledger) -> None:
    ledger.place.mkdir(parents=True)
    ledger.file.write_text('{"mine": 1}\n')
    with pytest.raises(RunError, match=r"ledger\.jsonl is no ledger of peftlab's"):
        ledger.submissions()
