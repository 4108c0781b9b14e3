"""`peftlab runs`: what is listed, in which order, and what tells runs apart."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from peftlab.errors import ConfigError
from peftlab.metric_names import RECORD_PART, TRAIN_LOSS
from peftlab.records.find import run_folders
from peftlab.records.folder import RunFolder
from peftlab.records.identity_recorded import recorded_rules
from peftlab.report import listed as reading
from peftlab.report.listed import Listed, read_listed
from peftlab.report.listing import best_of, in_order, only, shared_by_most, told_apart, value_of
from peftlab.report.records_config import code_keys, flat
from peftlab.report.render.terminal import PlainConsole
from peftlab.training.places import OF_EPOCH
from tests.conftest import Peftlab
from tests.report.made_up import failed, record, three_methods, write


def listed(folder: Path) -> list[Listed]:
    return read_listed(run_folders([str(folder)]))


def test_a_run_says_what_tells_it_from_the_others(tmp_path: Path) -> None:
    write(
        tmp_path / "t",
        [
            record(0.8, key="a", keys={"peft.rank": 2, "optim.lr": 1e-3}),
            record(0.8, key="b", keys={"peft.rank": 4, "optim.lr": 1e-3}),
            record(0.8, key="c", keys={"peft.rank": 4, "optim.lr": 1e-3, "data.path": "elsewhere.jsonl"}, seed=1),
            record(0.8, key="d", method="head", keys={"optim.lr": 1e-2}),
        ],
    )
    assert [" ".join(f"{key}={said}" for key, said in one.items()) for one in told_apart(listed(tmp_path))] == [
        "peft=lora rank=2 seed=0", "peft=lora rank=4 seed=0", "peft=lora rank=4 seed=1", "peft=head seed=0",
    ]  # fmt: skip


def test_data_that_the_config_does_not_tell_apart(tmp_path: Path) -> None:
    write(tmp_path / "t", [record(0.8, key="a"), record(0.8, key="b", data={"hash": "e" * 64})])
    assert told_apart(listed(tmp_path)) == [{"hash": "dddddddddddd"}, {"hash": "eeeeeeeeeeee"}]


def test_every_fate_of_a_run_is_listed(tmp_path: Path) -> None:
    write(tmp_path / "t", [record(0.8, key="a"), failed(record(0.8, key="b"), "RuntimeError: no")])
    write(tmp_path / "t", [record(0.8, key="c", history=[{"epoch": 0, "train/loss": None}])])
    (tmp_path / "t" / "d").mkdir()
    (tmp_path / "t" / "d" / "record.json").write_text("{", encoding="utf-8")
    for key in ("e", "f"):
        (tmp_path / "t" / key).mkdir()
        (tmp_path / "t" / key / "config.yaml").write_text("name: t\nseed: 3\npeft: {rank: 4}\n", encoding="utf-8")
        (tmp_path / "t" / key / "metrics.csv").write_text("epoch,x\n0,1\n", encoding="utf-8")
    with RunFolder(tmp_path / "t" / "f").locked():
        found = {run.key: run for run in listed(tmp_path)}
    fates = {key: run.status for key, run in found.items()}
    assert fates == {
        "a": "finished", "b": "failed", "c": "diverged", "d": "unreadable", "e": "unfinished", "f": "running",
    }  # fmt: skip
    assert (found["e"].epochs, found["e"].config["peft.rank"], found["b"].error) == (1, 4, "RuntimeError: no")
    assert "is damaged" in found["d"].error


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        ("metrics", "none", "metrics is no mapping"),
        ("metrics", {"test": [0.5]}, "metrics.test is no mapping"),
        ("timing", 3, "timing is no mapping"),
    ],
)
def test_figures_that_are_none_are_told_when_the_record_is_read(
    tmp_path: Path, part: str, value: Any, said: str
) -> None:
    damaged = record(0.8, key="b") | {part: value}
    write(tmp_path / "t", [record(0.8, key="a"), damaged])
    found = {run.key: run for run in listed(tmp_path)}
    assert (found["a"].status, found["b"].status) == ("finished", "unreadable")
    assert said in found["b"].error


@pytest.mark.parametrize("part", ["config", "peft", "test", "timing", "history"])
@pytest.mark.parametrize("broken", [b'"x": "\xff"', b'"\xff": 1', b'"x": 01', b'"x": "\\q"', b'"x": "\x01"'])
def test_a_record_that_is_no_json_is_told_wherever_it_is_broken(tmp_path: Path, part: str, broken: bytes) -> None:
    """Also in what is read later, or never: nobody who asks for figures meets it then."""
    folder = tmp_path / "t" / "a"
    folder.mkdir(parents=True)
    made = record(0.8, key="a", history=[{"epoch": 0, "train/loss": 1.0}])
    begin = b"[{" if part == "history" else b"{"
    text = (
        json.dumps(made)
        .encode()
        .replace(f'"{part}": '.encode() + begin, f'"{part}": '.encode() + begin + broken + b", ")
    )
    assert broken in text
    (folder / "record.json").write_bytes(text)
    (found,) = listed(tmp_path)
    assert (found.status, found.values) == ("unreadable", {})
    assert "record.json is damaged (it is no JSON" in found.error


def test_many_are_read_by_several_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    three_methods(tmp_path / "t")
    alone = listed(tmp_path)
    monkeypatch.setattr(reading, "MANY", 2)
    monkeypatch.setattr(reading, "cpus", lambda: 2)
    assert listed(tmp_path) == alone


def test_order_by_anything(tmp_path: Path) -> None:
    write(
        tmp_path / "t",
        [
            record(0.7, key="a", keys={"optim.lr": 1e-2}, trainable=30),
            failed(record(0.9, key="b", keys={"optim.lr": 1e-4})),
            record(0.9, key="c", keys={"optim.lr": 1e-3}, trainable=20),
        ],
    )
    runs = listed(tmp_path)

    def order(name: str, *, falling: bool = False) -> str:
        return "".join(run.key for run in in_order(runs, value_of(name, runs, "--sort"), falling=falling))

    assert order("lr") == order("optim.lr") == order("config.optim.lr") == "bca"
    assert order("test/accuracy") == order("metrics.test.accuracy") == "acb"
    assert order("test/accuracy", falling=True) == "cab"  # without a value last, either way
    assert order("parameters.trainable") == "cab"
    assert order("key", falling=True) == "cba"
    with pytest.raises(ConfigError, match=r"no run has that\. Did you mean 'test/accuracy'"):
        value_of("test/acuracy", runs, "--sort")


def test_the_best_is_chosen_on_validation_of_each_data_set(tmp_path: Path) -> None:
    write(
        tmp_path / "t",
        [
            record(0.7, key="a", metrics={"validation": {"accuracy": 0.9}, "test": {"accuracy": 0.1}}),
            record(0.7, key="b", metrics={"validation": {"accuracy": 0.8}, "test": {"accuracy": 0.9}}),
            record(0.7, key="c", metrics={"validation": {"accuracy": 0.1}}, data={"hash": "e" * 64}),
        ],
    )
    first, second = best_of(listed(tmp_path), 2)
    assert [run.key for run in first[1]] == ["a", "b"]
    assert [run.key for run in second[1]] == ["c"]
    assert first[0] == "best on validation accuracy of 2 runs on TextFiles dddddddddddd"


def test_where_lower_is_better_the_best_is_low(tmp_path: Path) -> None:
    says = {"objective": {"name": "regression", "selects": "mse", "metrics": {"loss": "min", "mse": "min"}}}
    write(
        tmp_path / "t",
        [
            record(0, key=key, metrics={"validation": {"mse": value}}) | says
            for key, value in (("a", 2.0), ("b", 1.0), ("c", 3.0))
        ],
    )
    ((_, best),) = best_of(listed(tmp_path), 1)
    assert [run.key for run in best] == ["b"]


def test_conditions(tmp_path: Path) -> None:
    write(tmp_path / "t", [record(0.8, key="a", keys={"optim.lr": 1e-3}), failed(record(0.8, key="b"))])
    runs = listed(tmp_path)
    assert [run.key for run in only(runs, ["lr=1e-3", "status=finished"])] == ["a"]
    assert [run.key for run in only(runs, ["status=failed"])] == ["b"]
    with pytest.raises(ConfigError, match=r"the condition lr=7: no run has this value\. Values of optim\.lr: 0\.001"):
        only(runs, ["lr=7"])
    with pytest.raises(ConfigError, match=r"status=done: no run has this status\. There are: failed, finished"):
        only(runs, ["status=done"])


def test_the_command(peftlab: Peftlab, tmp_path: Path) -> None:
    three_methods(tmp_path / "outputs" / "t")
    done = peftlab("runs")
    assert done.status == 0
    assert "9 runs: 9 finished" in done.out
    assert "peft=lora seed=1" in done.out
    best = peftlab("runs", "outputs/t", "peft=lora", "--best")
    assert "lora1" in best.out
    assert "lora2" not in best.out
    rows = json.loads(peftlab("runs", "--json", "--sort", "test/accuracy").out)
    assert [row["values"]["test/accuracy"] for row in rows] == sorted(
        (row["values"]["test/accuracy"] for row in rows), reverse=True
    )
    columns = peftlab("runs", "--columns", "rank,timing.train_seconds")
    assert columns.status == 2
    assert "--columns rank: no run has that." in columns.err
    assert "12" in peftlab("runs", "--columns", "timing.train_seconds", "seed=2").out
    figures = peftlab("runs", "--columns", "test/accuracy,metrics.test.loss").out
    found = re.findall(r"finished +(\S+) +(\S+)", figures)
    assert len(found) == 9
    assert {len(figure.partition(".")[2]) for pair in found for figure in pair} == {4}, "decimals, in every row"
    for words, says in (
        (["nowhere"], "there is no folder 'nowhere'"),
        (["--best", "0"], "--best 0: give how many, 1 or more"),
        (["--best", "--sort", "seed"], "leave --sort and --reverse out"),
        (["--columns", ","], "--columns is empty"),
        (["seed=9"], "no run has this value"),
    ):
        refused = peftlab("runs", *words)
        assert (refused.status, says in refused.err) == (2, True), refused.err


def test_no_command_of_these_imports_torch(tmp_path: Path) -> None:
    three_methods(tmp_path / "outputs" / "t")
    code = (
        "import sys; from peftlab.cli import main; main(['runs']); main(['diff', 'outputs/t/lora0', 'outputs/t/head0'])"
        "; main(['remove', 'outputs/t/lora0', '--yes']); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "removed 1 run" in done.stdout


def test_what_most_runs_say_is_said_once() -> None:
    rows = [{"peft": "lora", "rank": str(n), "targets": "[query]", "seed": "0"} for n in range(5)]
    rows[4]["targets"] = "[key]"
    assert shared_by_most(rows) == {"peft": "lora", "targets": "[query]"}
    assert shared_by_most(rows[:2]) == {}, "of two runs each says its own"


def test_a_run_can_be_copied_from_a_narrow_list(
    scratch: Path, peftlab: Peftlab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name and key stand in one line; columns that have no room are named."""
    write(scratch / "outputs" / "t", [record(0.8, key=f"{n}" * 12, seed=n) for n in range(4)])
    write(scratch / "outputs" / "a_longer_name", [record(0.8, key="f" * 12, name="a_longer_name")])
    monkeypatch.setattr("peftlab.commands.runs.console", lambda: PlainConsole(width=60))
    names = "timing.train_seconds,parameters.trainable,test/loss,test/accuracy,timing.total_seconds"
    lines = peftlab("runs", "--columns", names).out.splitlines()
    assert max(map(len, lines), default=99) <= 60, peftlab("runs", "--columns", names).err
    assert any(line.split()[0] == "a_longer_name/ffffffffffff" for line in lines if line.strip())
    words = " ".join(" ".join(lines).split())
    assert re.search(r"Too narrow here for: [^;]*timing.total_seconds; --json has them", words), words
    assert "3 finished" in peftlab("runs", "seed=1,2,3").out
    refused = peftlab("runs", "test/accuracy>0.5")
    assert (refused.status, "a condition is KEY=VALUE" in refused.err) == (2, True), refused.err


def test_what_is_passed_over_of_many_records_is_not_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history = [
        {"epoch": 0, "of_epoch": 0.5, "step": 5, "validation/loss": 0.7},
        {"epoch": 0, "step": 10, "train/loss": 0.5, "validation/per_class": {"f1": [0.1, 0.2]}},
    ]
    made = record(0.8, key="a", history=history, memory={"peak_mib": 12.5}, selection={"epoch": 0})
    write(tmp_path / "t", [made, record(0.8, key="b", history=[{"epoch": 0, "train/loss": None}])])
    write(tmp_path / "t", [failed(record(0.8, key="c"), "RuntimeError: no"), record(0.8, key="d", history=None)])
    monkeypatch.setattr(reading, "MANY", 1)
    whole = listed(tmp_path)
    assert [(run.status, run.epochs) for run in whole[:3]] == [("finished", 1), ("diverged", 1), ("failed", 0)]
    assert whole[0].values["memory.peak_mib"] == 12.5
    assert set(reading.WantedOfHistory.__annotations__) == {OF_EPOCH, TRAIN_LOSS.in_history}
    assert {RECORD_PART, *reading._FIGURES} <= reading.Wanted.__annotations__.keys()


def test_a_list_says_of_each_run_what_its_record_does(tmp_path: Path) -> None:
    """Parts that records repeat are read once, figures when they are asked for: nobody sees it."""
    odd = {"ä\u2028": "😀", "n": 1.0, "whole": 1, "yes": True, "deep": {"a": [1, {"b": None}]}, "no": None}
    made = [record(0.8, key=f"{n}", seed=n % 2, keys={"peft.rank": [1, 1.0, True, "1"][n % 4]}) for n in range(8)]
    for one in made:
        one["config"]["data"] |= odd
    made[5]["metrics"]["test"]["accuracy"] = float("inf")  # no JSON that every reader takes
    made[7]["config"]["name"] = "half of a pair: \ud800"  # nor is this
    code = {"content": {"code_content": {"peft": "c" * 64}}}
    for one in made[::3]:  # the others are of a peftlab that did not say it
        one["identity"] = {"bookkeeping": ["name", "logger"], "added": {"peft.x": 1}, "run_folders": []} | code
    write(tmp_path / "t", made)
    for run, one in zip(listed(tmp_path), made, strict=True):
        assert repr(dict(run.config)) == repr(
            flat(one["config"]) | code_keys(one) | {"data.hash": one["data"]["hash"][:12]}
        )
        assert run.rules == recorded_rules(one)
        assert run.figure("test") == one["metrics"]["test"]["accuracy"] == run.values["test/accuracy"]
        assert run.values["timing.train_seconds"] == one["timing"]["train_seconds"]
    shared = [{id(field) for field in run.fields} for run in listed(tmp_path)]
    assert len(shared[0] & shared[4]) >= len(made[0]["config"]) - 1, "of equal bytes there is one object"
    ranks = [row["rank"] for row in told_apart(listed(tmp_path))]
    assert ranks == ["1", "1", "true", "1"] * 2
