"""What lies on the hub is run again at the commit that the record names."""

from __future__ import annotations

import io
import json
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from peftlab.audit.pinned import moving, pinned, pins
from peftlab.audit.reproduce import prepare
from peftlab.config import from_plain
from tests.conftest import Peftlab
from tests.data.hub_server import FakeHub
from tests.runs.small_runs import CLASSIFIER, edit, finished

COMMIT, OTHER = "a" * 40, "b" * 40


def record(**backbone: Any) -> dict[str, Any]:
    tasks = [{"task": "a", "name": "ag_news", "hub_revision": None}, {"name": "text_files", "path": "x"}]
    return {
        "config": {"backbone": {"revision": None}, "data": {"tasks": tasks, "hub_revision": "v1"}},
        "backbone": backbone,
        "data": {"hub_commit": OTHER, "tasks": {"a": {"hub_commit": COMMIT}, "text_files": {}}},
    }


def test_each_place_that_says_a_branch_says_its_commit() -> None:
    one = record(commit=COMMIT)
    found = pins(one)
    assert [(pin.key, pin.commit, pin.override) for pin in found] == [
        ("backbone.revision", COMMIT, f"backbone.revision={COMMIT}"),
        ("data.hub_revision", OTHER, f"data.hub_revision={OTHER}"),
        ("data.tasks[0].hub_revision", COMMIT, None),
    ]
    assert "v1 was then" in found[1].line()
    now = pinned(one["config"], found)
    assert (now["backbone"]["revision"], now["data"]["hub_revision"]) == (COMMIT, OTHER)
    assert now["data"]["tasks"][0]["hub_revision"] == COMMIT
    assert one["config"]["backbone"]["revision"] is None
    assert pins(one | {"config": now}) == []


@pytest.mark.parametrize("commit", [None, 7, "main", f"{COMMIT} trainer=gpu", "a" * 65])
def test_what_is_no_commit_pins_nothing(commit: Any) -> None:
    assert [pin.key for pin in pins(record(commit=commit)) if pin.key.startswith("backbone")] == []


def test_a_tokenizer_of_its_own_is_named() -> None:
    said = moving(record(tokenizer={"id": "someone/words", "commit": COMMIT}))
    assert said is not None
    assert "someone/words" in said
    assert moving(record()) is None


def test_nothing_on_the_hub_is_nothing_to_pin(peftlab: Peftlab, reviews: Path) -> None:
    run = finished(reviews)
    done = prepare(str(run), Path("again"), ())
    assert not any("hub" in note or "revision" in word for note in done.notes for word in done.arguments)
    edit(run, lambda one: one["data"].update(hub_commit=COMMIT))
    assert prepare(str(run), Path("again"), ()).arguments == done.arguments, "files have no revision to set"


def table(word: str) -> bytes:
    file = io.BytesIO()
    texts = [f"{word} {('bad', 'good')[n % 2]} {n}" for n in range(40)]
    pq.write_table(pa.table({"text": texts, "label": ["no", "yes"] * 20}), file)
    return file.getvalue()


@pytest.mark.whole
def test_when_the_main_branch_has_moved_the_bits_are_the_same(scratch: Path) -> None:
    with FakeHub() as hub:
        first = hub.add_dataset("someone/reviews", {"train.parquet": table("first")})
        call = partial(hub.call, scratch / "hf")
        words = [word for word in CLASSIFIER if not word.startswith("data=")]
        call("train", *words, "data=hub", "data.id=someone/reviews", "name=t")
        hub.add_dataset("someone/reviews", {"train.parquet": table("second")})
        (run,) = scratch.glob("outputs/t/*")
        said = call("reproduce", str(run))
    assert "the same bits in every result" in said
    assert f"data.revision={first}: the commit that the main branch was then" in said
    (again,) = scratch.glob("outputs/reproduced/t/*")
    there = json.loads((again / "record.json").read_text())
    assert f"the new run has the key {there['key']}" in said
    assert from_plain(there["config"]).plain()["data"]["revision"] == first
