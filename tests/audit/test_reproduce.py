"""``peftlab reproduce``: the same bits from a record alone, what is other here, and what is other in the result."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from peftlab.audit.compare import compare, compare_adapters
from peftlab.commands import reproduce
from tests.conftest import Peftlab
from tests.forked import run_forked
from tests.runs.small_runs import CLASSIFIER, edit, finished, record_of, train


@pytest.fixture
def run(reviews: Path) -> Path:
    return finished(reviews)


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is in a process of its own that is forked from a warm server; without this, in a new interpreter."""
    monkeypatch.setattr(reproduce, "subprocess", SimpleNamespace(run=run_forked))


def test_the_same_bits_in_a_folder_of_its_own(peftlab: Peftlab, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    result = peftlab("reproduce", run)
    assert result.status == 0, result.err + result.out
    assert "the same bits in every result" in result.out
    assert "OTHER" not in result.out
    again = Path("outputs/reproduced/t") / run.name
    assert record_of(again)["metrics"] == record_of(run)["metrics"]
    assert (again / "adapter.safetensors").read_bytes() == (run / "adapter.safetensors").read_bytes()
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before, "the original is untouched"
    assert peftlab("verify", again).status == 0
    stamp = (again / "record.json").stat().st_mtime_ns
    monkeypatch.setattr(reproduce, "subprocess", SimpleNamespace(run=run_forked))
    content = json.loads(peftlab("reproduce", run, "--json").out)
    assert content["identical"] is True
    assert {"test accuracy", "epochs", "adapter.safetensors"} <= {one["name"] for one in content["results"]}
    assert (again / "record.json").stat().st_mtime_ns > stamp, "it runs each time, and is not skipped"


def test_the_printed_command_is_the_one(peftlab: Peftlab, run: Path) -> None:
    result = peftlab("reproduce", run, "--print", "--to", "a folder")
    assert result.status == 0
    assert not Path("a folder").exists(), "nothing runs"
    command = shlex.split(result.out.splitlines()[-1])
    assert command[:2] == ["peftlab", "train"]
    assert command[2 : 2 + len(CLASSIFIER)] == [o for o in CLASSIFIER if o != "logger=none"] + [
        "data.path=reviews.jsonl"
    ]
    assert peftlab(*command[1:]).status == 0
    assert record_of(Path("a folder/t") / run.name)["metrics"] == record_of(run)["metrics"]


def test_a_record_that_was_changed_is_said_to_be(peftlab: Peftlab, run: Path) -> None:
    assert "changed after it was written" not in peftlab("reproduce", run, "--print").out
    edit(run, lambda record: record["metrics"]["test"].update(accuracy=1.0), sealed=False)
    shutil.copy(run / "record.json", "copied.json")
    for given in (run, "copied.json"):
        result = peftlab("reproduce", given, "--print")
        assert result.status == 0
        assert "Take care: the record was changed after it was written" in result.out
        assert result.out.splitlines()[-1].startswith("peftlab train ")


@pytest.mark.usefixtures("forked")
def test_a_lone_record_from_elsewhere(peftlab: Peftlab, run: Path, reviews: Path, scratch: Path) -> None:
    """No folder, another place, data somewhere else, and a command that means nothing here."""
    elsewhere = scratch / "elsewhere"
    elsewhere.mkdir()

    def moved(record: Any) -> None:
        record["argv"] = ["peftlab", "train", "experiment=of_that_time"]
        record["config"]["data"]["path"] = "/that/machine/reviews.jsonl"

    edit(run, moved)
    shutil.move(run / "record.json", elsewhere / "figure 3.json")
    shutil.rmtree(run)
    nowhere = peftlab("reproduce", "elsewhere/figure 3.json")
    assert nowhere.status == 2
    assert "/that/machine/reviews.jsonl" in nowhere.err
    assert "peftlab reproduce RECORD data.path=…" in nowhere.err
    assert not Path("outputs/reproduced").exists()
    result = peftlab("reproduce", "elsewhere/figure 3.json", f"data.path={reviews}", "--check-data")
    assert result.status == 0, result.err + result.out
    assert "its resolved config does" in result.out
    assert "the data are those of the record" in result.out
    assert "the same bits in every result" in result.out
    assert {path.name for path in Path("outputs/reproduced").iterdir()} == {"configs", "t"}
    assert {path.name for path in Path().glob("[!.]*")} == {"elsewhere", "outputs", "reviews.jsonl"}, (
        "Hydra leaves nothing"
    )


@pytest.mark.usefixtures("forked")
def test_a_run_that_started_from_another(peftlab: Peftlab, run: Path, reviews: Path) -> None:
    later = train(peftlab, reviews, f"backbone.from_run={run}", "data.path=reviews.jsonl")
    shutil.move("outputs/t", "copied")
    result = peftlab("reproduce", Path("copied") / later.name)
    assert result.status == 0, result.err + result.out
    assert "the same bits in every result" in result.out


def test_versions_machine_and_code_that_differ_are_said(peftlab: Peftlab, run: Path) -> None:
    def other(record: Any) -> None:
        record["versions"]["torch"] = "1.0"
        record["versions"]["triton"] = "9"
        record["hardware"]["processor"] = "abacus"
        record["hardware"]["accelerators"] = ["A100", "A100"]
        record["git"] = {"revision": "f" * 40, "dirty": True}

    result = peftlab("reproduce", run, "--print")
    assert "torch: " not in result.out
    edit(run, other)
    result = peftlab("reproduce", run, "--print")
    for line in (
        "torch: 1.0 in the record, ",
        "triton: 9 in the record, none here",
        "processor: abacus in the record",
        "accelerators: A100, A100 in the record, none here",
        "git revision: ffffffffffff in the record",
        "uncommitted changes to the code in the record",
    ):
        assert line in result.out


@pytest.mark.usefixtures("forked")
def test_data_that_changed_are_said_and_give_other_results(peftlab: Peftlab, run: Path, reviews: Path) -> None:
    lines = reviews.read_text().splitlines()
    reviews.write_text("\n".join([line.replace("good", "GOOD").replace("GOOD", "good") for line in lines[:-2]]) + "\n")
    result = peftlab("reproduce", run, "--check-data")
    assert result.status == 1
    assert "the content of a file (data, weights, an earlier run, code of yours) has changed" in result.out
    assert "the data have changed: hash" in result.out
    assert "OTHER data " in result.out
    assert "OTHER adapter.safetensors" in result.out
    assert "results differ" in result.out


@pytest.mark.usefixtures("forked")
def test_a_result_that_is_not_the_records_is_named(peftlab: Peftlab, run: Path) -> None:
    def claims_more(record: Any) -> None:
        record["metrics"]["test"]["accuracy"] = 0.999
        record["history"][1]["train/loss"] += 1e-9

    edit(run, claims_more)
    result = peftlab("reproduce", run)
    assert result.status == 1
    others = [line for line in result.out.splitlines() if line.startswith("OTHER")]
    assert len(others) == 2
    assert "from epoch 1 on: train/loss" in others[0]
    assert "test accuracy" in others[1]
    assert "0.999 in the record" in others[1]
    assert "2 of " in result.out.splitlines()[-1]


def test_adapters_are_compared_tensor_by_tensor(run: Path, scratch: Path) -> None:
    before, now = run / "adapter.safetensors", scratch / "now.safetensors"
    recorded = record_of(run)["files"]["adapter.safetensors"]
    shutil.copy(before, now)
    assert [one.identical for one in compare_adapters(before, recorded, now)] == [True]
    assert [one.identical for one in compare_adapters(scratch / "gone", recorded, now)] == [True], "by the hash alone"
    state = load_file(now)
    name = sorted(state)[0]
    state[name].flatten()[0] += 0.25
    save_file(state, now)
    (one,) = compare_adapters(before, recorded, now)
    assert not one.identical
    assert f"1 of {len(state)} tensors differ, most '{name}': by up to 0.25" in one.said
    (one,) = compare_adapters(scratch / "gone", recorded, now)
    assert "not here" in one.said


def test_nan_is_the_same_as_nan(run: Path) -> None:
    one, two = record_of(run), record_of(run)
    for record in (one, two):
        record["metrics"]["test"]["loss"] = np.nan
        record["history"][2]["validation/loss"] = float("nan")
    assert all(result.identical for result in compare(one, two))
    two["history"][2]["train_seconds"] += 1
    assert all(result.identical for result in compare(one, two)), "time is no result"
    two["history"].pop()
    assert [result.name for result in compare(one, two) if not result.identical] == ["epochs"]


def test_a_run_of_two_processes(peftlab: Peftlab, reviews: Path) -> None:
    run = train(peftlab, reviews, "trainer.max_epochs=1")

    def on_gpus(record: Any) -> None:
        record["config"]["trainer"] |= {"devices": 2, "accelerator": "gpu"}

    edit(run, on_gpus)
    result = peftlab("reproduce", run, "--print")
    assert result.status == 0
    assert "the run asks for 2 GPUs; this machine has 0" in result.out
    edit(run, lambda record: record["config"]["trainer"].update(num_nodes=4))
    assert "The run used 4 nodes" in peftlab("reproduce", run, "--print").out
    refused = peftlab("reproduce", run)
    assert refused.status == 2
    assert "needs several nodes" in refused.err


def test_wrong_input(peftlab: Peftlab, run: Path, scratch: Path) -> None:
    (scratch / "notes.txt").write_text("x")
    (scratch / "other.json").write_text('{"a": 1}')
    (scratch / "broken.json").write_text("{")
    os.mkdir("empty")  # noqa: PTH102
    for arguments, said in (
        (["notes.txt"], "'notes.txt' is no record"),
        (["other.json"], "other.json is no record"),
        (["broken.json"], "broken.json is damaged"),
        (["empty"], "there is no record.json in 'empty'"),
        (["nowhere"], "there is no record.json in 'nowhere'"),
        ([run, "peft.rank=3"], "reproduce cannot change 'peft.rank'"),
        ([run, "name=x"], "reproduce cannot change 'name'"),
        ([run, "data.path"], "cannot read 'data.path'"),
        ([run, "data.path=gone.jsonl"], "gone.jsonl"),
        ([run, "--to", "outputs"], "is the run itself: choose another folder with --to"),
        ([run, "--to", "outputs/t/.."], "is the run itself: choose another folder with --to"),
        ([run, "--to", "notes.txt"], "notes.txt"),
    ):
        result = peftlab("reproduce", *arguments)
        assert result.status in (1, 2), arguments
        assert said in result.err
        assert "Traceback" not in result.err
    edit(run, lambda record: record.update(status="failed"))
    assert "there is no result to compare with" in peftlab("reproduce", run).err
    edit(run, lambda record: record.update(status="finished", schema_version=2))
    assert "schema version 2" in peftlab("reproduce", run).err
    edit(run, lambda record: record.update(schema_version=1, config={"a": 1}))
    assert "does not accept the config" in peftlab("reproduce", run).err
    edit(run, lambda record: record.pop("metrics"))
    assert "lacks metrics" in peftlab("reproduce", run).err
