"""Declared sweeps: declarations and their mistakes, running, stopping and running again, the table and its pictures."""

from __future__ import annotations

import csv
import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest
import yaml

from peftlab.errors import PeftlabError
from peftlab.report.columns import Column, cell_of
from peftlab.report.number_text import Form
from peftlab.sweeps.plan import DeclaredPlan
from peftlab.sweeps.reading import read_sweep
from peftlab.sweeps.record_paths import PARTS, check_record_path
from tests.conftest import REPOSITORY, Peftlab

COMMON = [
    "backbone=text_classifier", "logger=none", "data=text_files", "data.path=reviews.jsonl", "data.batch_size=8",
    "optim=sgd", "optim.lr=1", "trainer.max_epochs=2", "trainer.threads=1", "trainer.progress_bar=false",
]  # fmt: skip
DECLARED: dict[str, Any] = {
    "name": "small",
    "title": "A small sweep",
    "source": "a test",
    "command": "peftlab sweep small.yaml",
    "cost": "seconds",
    "selection": "Best on validation.",
    "overrides": COMMON,
    "settings": {"size": {"two": {"rank": ["peft.rank=2"]}, "three": {"rank": ["peft.rank=3"]}}},
    "seeds": [0, 1],
    "metric": "metrics.test.accuracy",
    "cells": [
        {"id": "before", "overrides": ["peft=full", "backbone.freeze=false"], "row": False},
        {
            "id": "lora",
            "label": "LoRA with alpha {peft.alpha}",
            "from": "before",
            "overrides": ["peft=lora", "peft.targets=[hidden]", "$rank", "measure_forgetting=true"],
            "grid": {"peft.alpha": [1, 4]},
            "curve": True,
        },
    ],
    "columns": [
        {"title": "accuracy", "value": "metrics.test.accuracy"},
        {"title": "trainable", "value": "parameters.trainable_without_head", "format": "count"},
        {"title": "forgetting, off", "value": "forgetting.forgetting_with_adapter_off", "format": "difference"},
    ],
    "expected": [
        {"cell": "lora_1", "column": "metrics.test.accuracy", "value": 0.5, "tolerance": 1, "source": "a guess"}
    ],
}


def declare(**changes: Any) -> Path:
    path = Path("small.yaml")
    path.write_text(yaml.safe_dump({**DECLARED, **changes}, sort_keys=False))
    return path


def test_it_runs_skips_and_tabulates(peftlab: Peftlab, reviews: Path) -> None:
    declare()
    Path("README.md").write_text("Before.\n<!-- table small -->\nold\n<!-- end of table small -->\nAfter.\n")
    first = peftlab("sweep", "small.yaml", "--jobs", "2", "--publish", "README.md")
    assert first.status == 0, first.out + first.err
    records = [json.loads(path.read_text()) for path in Path("outputs/small").glob("*/record.json")]
    assert len(records) == 6
    assert {record["status"] for record in records} == {"finished"}
    loras = [record for record in records if record["config"]["peft"].get("alpha") == 1.0]
    accuracies = [record["metrics"]["test"]["accuracy"] for record in loras]
    table = Path("outputs/small/table.md").read_text()
    assert (
        f"| LoRA with alpha 1 | {statistics.mean(accuracies):.4f} ± {statistics.stdev(accuracies):.4f} | 456 |" in table
    )
    assert "0 (exactly)" in table
    assert "a guess gives 0.5; measured" in table
    rows = list(csv.DictReader(Path("outputs/small/table.csv").read_text().splitlines()))
    assert len(rows) == 6
    assert {row["key"] for row in rows} == {record["key"] for record in records}
    readme = Path("README.md").read_text()
    assert readme.startswith("Before.\n")
    assert readme.endswith("After.\n")
    assert "LoRA with alpha 4" in readme
    assert "\nold\n" not in readme
    for name in ("curves", "parameters"):
        assert Path(f"docs/small_{name}.png").read_bytes().startswith(b"\x89PNG")

    times = {path: path.stat().st_mtime_ns for path in Path("outputs/small").glob("*/record.json")}
    again = peftlab("sweep", "small.yaml")
    assert again.status == 0
    assert "6 of 6 jobs are finished already" in again.out
    assert times == {path: path.stat().st_mtime_ns for path in Path("outputs/small").glob("*/record.json")}
    # One result gone: the table says so, and the next run makes it again.
    lost = next(Path("outputs/small", record["key"]) for record in loras if record["seeds"]["seed"] == 1)
    (lost / "record.json").unlink()
    assert "(1/2 seeds)" in peftlab("sweep", "small.yaml", "--report-only").out
    third = peftlab("sweep", "small.yaml", "--jobs", "1")
    assert "5 of 6 jobs are finished already" in third.out
    assert Path("outputs/small/table.md").read_text() == table


REFUSED = ["data._target_=tests.sweeps.odd_data.OddData", "+data.act=refuse"]
"""Of a class of another package nothing is known before its job runs."""


def test_a_failed_job_leaves_the_others_alone(peftlab: Peftlab, reviews: Path) -> None:
    cells = [
        {"id": "broken", "overrides": ["peft=head", *REFUSED]},
        {"id": "after", "from": "broken", "overrides": ["peft=head"]},
        {"id": "good", "overrides": ["peft=head"]},
    ]
    declare(cells=cells, expected=[], columns=DECLARED["columns"][:2], seeds=[0])
    result = peftlab("sweep", "small.yaml", "--jobs", "1")
    assert result.status == 1
    assert "2 of 3 jobs failed" in result.out
    assert "these rows are not for you" in result.out
    assert "after, seed 0: not run: 'broken' has failed" in result.out
    assert "Traceback" not in result.out + result.err
    assert "| broken | no result | no result |" in result.out
    contents = {cell["id"]: cell for cell in json.loads(Path("outputs/small/sweep.json").read_text())["cells"]}
    assert contents["broken"]["failed"]["0"].startswith("exit status 2: ")
    assert "these rows are not for you" in contents["broken"]["failed"]["0"]
    assert Path("outputs/small", contents["broken"]["logs"]["0"]).is_file()
    assert contents["after"]["logs"] == {}
    assert len(list(Path("outputs/small").glob("*/record.json"))) >= 1


TUNED: dict[str, Any] = {
    "cells": [
        {
            "id": "lora",
            "overrides": ["peft=lora", "peft.targets=[hidden]", "peft.rank=2", "trainer.max_epochs=1"],
            "tune": {"optim.lr": [1e-6, 1]},
        },
        {
            "id": "search",
            "overrides": ["peft=head", "trainer.max_epochs=1"],
            "search": {"optuna": {"trials": 2, "space": {"optim.lr": {"low": 1e-6, "high": 1, "log": True}}}},
        },
    ],
    "columns": DECLARED["columns"][:2],
    "overrides": [entry for entry in COMMON if not entry.startswith(("optim.lr", "trainer.max_epochs"))],
    "expected": [],
}


def test_values_are_chosen_on_validation_and_run_with_the_other_seeds(peftlab: Peftlab, reviews: Path) -> None:
    """Three tried and chosen among, twice; what the records say is what the table and sweep.json say."""
    declare(**TUNED)
    result = peftlab("sweep", "small.yaml", "seeds=3,4", "--jobs", "1")
    assert result.status == 0, result.out + result.err
    records = [json.loads(path.read_text()) for path in Path("outputs/small").glob("*/record.json")]
    assert len(records) == 2 + 1 + 2 + 1
    contents = json.loads(Path("outputs/small/sweep.json").read_text())
    assert contents["seeds"] == [3, 4]
    for cell, method in zip(contents["cells"], ("lora.LoRA", "head.HeadOnly"), strict=True):
        own = [record for record in records if record["config"]["peft"]["_target_"].endswith(method)]
        first = [record for record in own if record["seeds"]["seed"] == 3]
        (second,) = (record for record in own if record["seeds"]["seed"] == 4)
        best = max(record["metrics"]["validation"]["accuracy"] for record in first)
        (chosen,) = (record for record in first if record["config"]["optim"]["lr"] == cell["chosen"]["optim.lr"])
        assert chosen["metrics"]["validation"]["accuracy"] == best
        assert second["config"]["optim"]["lr"] == cell["chosen"]["optim.lr"]
        assert cell["runs"] == {"3": chosen["key"], "4": second["key"]}
        assert {one["run"] for one in cell["tried"]} == {record["key"] for record in first}
    table = Path("outputs/small/table.md").read_text()
    assert "seeds 3, 4 (n = 2)" in table
    assert "|  | chosen | accuracy |" in table
    rows = list(csv.DictReader(Path("outputs/small/table.csv").read_text().splitlines()))
    assert [(row["metrics.test.accuracy"] == "") for row in rows] == [row["run"] != "row" for row in rows]
    assert len(rows) == 6
    again = peftlab("sweep", "small.yaml", "seeds=3,4")
    assert "6 of 6 jobs are finished already" in again.out
    assert Path("outputs/small/table.md").read_text() == table
    assert peftlab("sweep", "small.yaml", "seeds=3,4", "--report-only").status == 0
    assert Path("outputs/small/table.md").read_text() == table
    checked = peftlab("check", "small.yaml", "seeds=3,4", "--no-counts").out
    assert "2 cells, 6 jobs at most: 6 finished, 0 to run." in checked
    assert "cost: none, all is finished." in checked
    more = peftlab("check", "small.yaml", "--no-counts").out.splitlines()  # other seeds: an estimate from these runs
    assert more[-1].startswith("cost: about ")
    assert re.search(r"from [1-9]\d* similar finished runs?\.", more[-1])


def test_a_search_stops_a_running_trial(peftlab: Peftlab, reviews: Path) -> None:
    """The second trial learns nothing, and would do so for thousands of epochs."""
    search = {
        "trials": 2,
        "sampler": "random",
        "seed": 5,  # draws (2 epochs, rate 1), then (3000 epochs, rate 1e-7)
        "pruner": "successive_halving",
        "metric": "validation/loss",
        "space": {"trainer.max_epochs": {"choices": [2, 3000]}, "optim.lr": {"choices": [1e-7, 1.0]}},
    }
    full = {"id": "search", "overrides": ["peft=full", "backbone.freeze=false"], "search": {"optuna": search}}
    declare(**{**TUNED, "cells": [full], "seeds": [0]})
    result = peftlab("sweep", "small.yaml", "--jobs", "1")
    assert result.status == 0, result.out + result.err
    (cell,) = json.loads(Path("outputs/small/sweep.json").read_text())["cells"]
    assert [(one["parameters"]["trainer.max_epochs"], one["state"]) for one in cell["tried"]] == [
        (2, "chosen"),
        (3000, "pruned"),
    ]
    assert all(Path("outputs/small", one["run"]).is_dir() for one in cell["tried"])
    assert "stopped after epoch " in result.out
    records = [json.loads(path.read_text()) for path in Path("outputs/small").glob("*/record.json")]
    assert sorted(record["status"] for record in records) == ["finished", "interrupted"]
    again = peftlab("sweep", "small.yaml", "--jobs", "1")
    assert again.status == 0
    assert "running" not in again.out


def test_dry_run_runs_nothing(peftlab: Peftlab, reviews: Path) -> None:
    declare()
    result = peftlab("sweep", "small.yaml", "size=three", "--dry-run")
    assert result.status == 0
    assert result.out.splitlines()[-1].startswith("6 jobs, 0 of them finished.")
    assert "peft.rank=3" in result.out
    assert "from the run of before" in result.out
    assert not Path("outputs").exists()


CELL = DECLARED["cells"][0]
MISTAKES = [
    ({"cells": [{**CELL, "overides": []}]}, [], ["small.yaml", "cells[0].overides", "Did you mean 'overrides'?"]),
    ({"cells": [CELL, CELL], "expected": []}, [], ["two cells are called 'before'"]),
    ({"cells": [{**CELL, "from": "befor"}], "expected": []}, [], ["starts from 'befor', which is no cell above it"]),
    ({"cells": [{**CELL, "overrides": ["peft.rnak=2"]}], "expected": []}, [], ["cell 'before'", "mean 'rank'?"]),
    ({"cells": [{**CELL, "overrides": ["$words"]}], "expected": []}, [], ["nothing says what '$words' stands for"]),
    ({"seeds": []}, [], ["seeds must be different numbers"]),
    ({"seeds": [1, 1]}, [], ["seeds must be different numbers"]),
    ({"metric": "metrics.test.acuracy"}, [], ["is no column's value"]),
    ({"columns": [{"title": "lr", "value": "config.optim.lr", "format": "text"}]}, [], ["column 'lr'", "numbers: "]),
    ({"expected": [{"cell": "lora_1", "column": "metrics.test.accuracy", "value": 1, "tolerance": 0}]}, [], ["source"]),
    ({"expected": [{**DECLARED["expected"][0], "cell": "lora_7"}]}, [], ["expected names the cell 'lora_7'"]),
    ({}, ["size=four"], ["size=four: unknown option", "three, two"]),
    ({}, ["seed=3"], ["the seeds of a sweep stand in small.yaml"]),
    ({}, ["name=../../x"], ["the name and the seeds of a sweep stand in"]),
    ({}, ["++name=x"], ["++name=x", "stand in small.yaml"]),
    ({}, ["~seed"], ["~seed", "stand in small.yaml"]),
    ({}, ["hydra.launcher.n_parallel=2"], ["hydra.launcher.n_parallel=2 is for -m", "--jobs"]),
    ({}, ["seeds=0", "seeds=1"], ["seeds is given 2 times"]),
    ({}, ["size=two", "size=three"], ["size is given 2 times"]),
    ({"name": "../../x"}, [], ["name"]),
    ({}, ["--jobs", "0"], ["--jobs 0"]),
    ({}, ["--publish", "README.md"], ["README.md", "cannot be read"]),
    ({}, ["--report-only"], ["no run of small.yaml is finished"]),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "more", "said"), MISTAKES)
def test_mistakes(peftlab: Peftlab, reviews: Path, changes: dict[str, Any], more: list[str], said: list[str]) -> None:
    declare(**changes)
    result = peftlab("sweep", "small.yaml", *more)
    assert result.status == 2
    for part in said:
        assert part in result.err
    assert "Traceback" not in result.err
    assert not Path("outputs").exists()


@pytest.mark.parametrize("content", [None, "a: [", "just text", "cells: 3", "cells: [3]", "seeds: [0]\nseeds: [1]"])
def test_files_that_declare_nothing(peftlab: Peftlab, content: str | None) -> None:
    if content is not None:
        Path("small.yaml").write_text(content)
    result = peftlab("sweep", "small.yaml")
    assert result.status == 2
    assert "small.yaml" in result.err
    assert len(result.err.strip().splitlines()) == 1


def test_a_column_that_no_record_has_is_found_before_anything_runs(peftlab: Peftlab, reviews: Path) -> None:
    columns = [*DECLARED["columns"][:1], {"title": "x", "value": "metrics.test.acuracy"}]
    declare(columns=columns, cells=[CELL], expected=[], seeds=[0])
    result = peftlab("sweep", "small.yaml", "--jobs", "1")
    assert result.status == 2
    assert "no record has a value at 'metrics.test.acuracy': there is no 'acuracy' under metrics.test." in result.err
    assert "Did you mean 'accuracy'?" in result.err
    assert not Path("outputs").exists()


def test_a_column_that_only_some_data_have_is_named_when_the_records_are_there(peftlab: Peftlab, reviews: Path) -> None:
    columns = [*DECLARED["columns"][:1], {"title": "x", "value": "metrics.test.tasks.news.accuracy"}]
    declare(columns=columns, cells=[CELL], expected=[], seeds=[0])
    result = peftlab("sweep", "small.yaml", "--jobs", "1")
    assert result.status == 2
    assert "no record has a value at 'metrics.test.tasks.news.accuracy': there is no 'tasks'" in result.err
    (record,) = Path("outputs/small").glob("*/record.json")
    for path in number_paths(json.loads(record.read_text())):
        check_record_path(path)  # what a record holds is known


def number_paths(values: dict[str, Any], above: str = "") -> list[str]:
    """Every place of a record that holds a number, in the parts that a table may show."""
    found = []
    for key, value in values.items():
        if isinstance(value, dict):
            found += number_paths(value, f"{above}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found.append(f"{above}{key}")
    return [path for path in found if above or path.partition(".")[0] in PARTS]


def test_a_table_is_shown_though_it_cannot_be_written(
    peftlab: Peftlab, reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk, say: no job is ended because of sweep.json, and the failures are told."""
    cells = [
        {"id": "good", "overrides": ["peft=head"]},
        {"id": "bad", "overrides": ["peft=head", *REFUSED]},
    ]
    declare(cells=cells, expected=[], columns=DECLARED["columns"][:2], seeds=[0])

    def full(path: Path, content: str | bytes) -> None:
        raise PeftlabError(f"cannot write {path}: No space left on device.")

    monkeypatch.setattr("peftlab.sweeps.manifest.write_atomically", full)
    result = peftlab("sweep", "small.yaml", "--jobs", "1")
    assert result.status == 2
    assert "\n| good | " in result.out
    assert "1 of 2 jobs failed" in result.out
    assert "No space left on device" in result.err


def test_forced_runs_are_to_run(peftlab: Peftlab, reviews: Path) -> None:
    declare(cells=[{**CELL, "row": True}], expected=[], columns=DECLARED["columns"][:2], seeds=[0])
    assert peftlab("sweep", "small.yaml", "--jobs", "1").status == 0
    assert "1 job, 1 finished." in peftlab("sweep", "small.yaml", "--dry-run").out
    assert "1 job, 0 finished." in peftlab("sweep", "small.yaml", "force=true", "--dry-run").out
    assert "0 finished, 1 to run." in peftlab("check", "small.yaml", "force=true", "--no-counts").out
    assert "| before |" in peftlab("sweep", "small.yaml", "force=true", "--report-only").out


@pytest.mark.parametrize(
    ("values", "form", "text"),
    [
        ((), "score", "–"),
        ((0.5, 0.7, 0.9), "score", "0.7000 ± 0.2000"),
        ((0.5,), "score", "0.5000 (1/3 seeds)"),
        ((0.0, 0.0, 0.0), "difference", "0 (exactly)"),
        ((0.0, 0.0, 0.3), "difference", "+0.1000 ± 0.1732"),
        ((456.0, 456.0, 456.0), "count", "456"),
        ((3000.0, 3008.0, 3000.0), "count", "3,000 … 3,008"),
        ((1.25, 1.25, 1.25), "seconds", "1.2 ± 0.0"),
        ((10.0, 11.0, 12.0), "seconds", "11.0 ± 1.0"),
        ((820.0, 821.0, 822.0), "number", "821 ± 1"),
        ((3.0, 3.5, 2.5), "number", "3.0 ± 0.5"),
        ((1e-6, 2e-6, 3e-6), "number", "2e-06 ± 1e-06"),
        ((12_000.0, 10_000.0, 8_000.0), "number", "10,000 ± 2,000"),
    ],
)
def test_figures(values: tuple[float, ...], form: Form, text: str) -> None:
    assert cell_of(values, Column(title="", value="", format=form), complete=3, expected=3).text == text


def test_a_column_may_show_means_alone() -> None:
    alone = Column(title="", value="", format="seconds", deviation=False)
    assert cell_of((10.0, 11.0, 12.0), alone, complete=3, expected=3).text == "11.0"


def test_the_lectures_sweep_composes(peftlab: Peftlab, monkeypatch: pytest.MonkeyPatch, scratch: Path) -> None:
    for name in ("PEFTLAB_DATA", "PEFTLAB_GLOVE"):
        monkeypatch.setenv(name, str(scratch))
    path = REPOSITORY / "sweeps" / "lecture.yaml"
    sweep = read_sweep(path)
    assert len(sweep.seeds) >= 5
    for setting, options in sweep.settings.items():
        for option in options:
            assert DeclaredPlan(sweep, {setting: option}).total() == len(sweep.cells) * len(sweep.seeds)
    result = peftlab("sweep", str(path), "data_set=packaged", "--dry-run")
    assert result.status == 0, result.err
