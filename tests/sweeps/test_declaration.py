"""Sweep files: each mistake is one line that names the file and the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from peftlab.composition import checked
from peftlab.errors import ConfigError
from peftlab.sweeps.declaration import assignments, override_value, plain_number
from peftlab.sweeps.reading import read_sweep
from tests.alone import peftlab_alone
from tests.conftest import TINY, Peftlab
from tests.sweeps.made_up import BASE, declare, declared

CELL: dict[str, Any] = {"id": "lora", "overrides": ["peft=lora"]}
SEARCH: dict[str, Any] = {"trials": 3, "space": {"optim.lr": {"low": 1e-5, "high": 1e-2, "log": True}}}
EXPECTED = {"cell": "lora", "column": "metrics.test.accuracy", "value": 1, "tolerance": 0.1, "source": "a paper"}


def tuned(**grid: Any) -> list[dict[str, Any]]:
    return [{**CELL, "tune": {key.replace("__", "."): values for key, values in grid.items()}}]


def searching(**changes: Any) -> list[dict[str, Any]]:
    return [{**CELL, "search": {"optuna": {**SEARCH, **changes}}}]


def ranging(**limits: Any) -> list[dict[str, Any]]:
    return searching(space={"optim.lr": limits})


MISTAKES = [
    ({"cells": tuned(optim__lr=[])}, ["cells[0].tune", "at least 1"]),
    ({"cells": tuned(optim__lr=3)}, ["cells[0].tune", "must be a list"]),
    ({"cells": [{**CELL, "tune": 3}]}, ["cells[0].tune=3"]),
    ({"cells": tuned(optim__lr=[1e-3, "1e-3"])}, ["cell 'lora'", "tune names optim.lr=0.001 twice"]),
    ({"cells": tuned(seed=[1, 2])}, ["cell 'lora'", "'seed' cannot be tuned"]),
    ({"cells": [{**tuned(optim__lr=[1])[0], "grid": {"optim.lr": [1, 2]}}]}, ["'optim.lr' stands in its grid and"]),
    ({"cells": [{**tuned(optim__lr=[1])[0], **searching()[0]}]}, ["has a tune grid and a search: choose one"]),
    ({"cells": [CELL], "tune": {"optim.lr": []}}, ["tune", "at least 1"]),
    ({"cells": [CELL], "tune_by": "metrics.test.accuracy"}, ["tune_by", "nothing is tuned on test data"]),
    ({"cells": [CELL], "tune_by": "forgetting.after"}, ["tune_by", "nothing is tuned on test data"]),
    ({"cells": [CELL], "tune_by": "timing.train_seconds"}, ["tune_by", "must lie under metrics.validation"]),
    ({"cells": [CELL], "baseline": "lroa"}, ["baseline 'lroa' is no row", "Did you mean 'lora'?"]),
    ({"cells": [{**CELL, "row": False}], "baseline": "lora"}, ["baseline 'lora' is no row"]),
    ({"cells": [{**CELL, "id": "a/b"}]}, ["cells[0].id='a/b'", "must begin with"]),
    ({"cells": [CELL, CELL]}, ["two cells are called 'lora'"]),
    ({"cells": [{**CELL, "grid": {"data.path": ["/a/b.csv"]}}]}, ["the id 'lora_/a/b.csv'", "letters, digits"]),
    ({"cells": [{**CELL, "grid": {"seed": [1, 2]}}]}, ["'seed' cannot stand in a grid"]),
    ({"cells": [{"id": "x", "overrides": ["peft=lora", "++seed=5"]}]}, ["cell 'x': '++seed=5' has no effect"]),
    ({"cells": [{"id": "x", "overrides": ["name=other"]}]}, ["cell 'x': 'name=other' has no effect"]),
    ({"cells": [{"id": "x", "overrides": ["output_dir=other"]}]}, ["cell 'x'", "lie in one folder"]),
    ({"cells": [CELL], "overrides": ["seed=5"]}, ["overrides: 'seed=5' has no effect"]),
    ({"cells": [CELL], "settings": {"s": {"a": {"w": ["name=x"]}}}}, ["settings.s.a.w: 'name=x' has no effect"]),
    ({"cells": [{**CELL, "from": "lora"}]}, ["starts from 'lora', which is no cell above it"]),
    ({"cells": [{**CELL, "search": {"grid": SEARCH}}]}, ["unknown key 'cells[0].search.grid'", "optuna"]),
    ({"cells": searching(trial=3)}, ["cells[0].search.optuna.trial", "Did you mean 'trials'?"]),
    ({"cells": searching(trials=0)}, ["cells[0].search.optuna.trials=0", "at least 1"]),
    ({"cells": searching(sampler="tpee")}, ["sampler='tpee'", "Did you mean 'tpe'?"]),
    ({"cells": searching(pruner="halving")}, ["pruner='halving'", "successive_halving"]),
    ({"cells": searching(space={})}, ["cells[0].search.optuna", "space is empty"]),
    ({"cells": searching(metric="test/accuracy")}, ["metric 'test/accuracy'", "never tuned on test data"]),
    ({"cells": searching(metric="validation/loss", direction="maximize")}, ["contradicts metric 'validation/loss'"]),
    ({"cells": searching(space={"name": {"choices": ["a"]}})}, ["'name' cannot be tuned"]),
    ({"cells": ranging(low=1)}, ["space: optim.lr", "give low and high, or choices"]),
    ({"cells": ranging(low=1, high=1)}, ["low must be less than high"]),
    ({"cells": ranging(low=0, high=1, log=True)}, ["logarithmic scale needs low > 0"]),
    ({"cells": ranging(low=1, hihg=2)}, ["space: optim.lr.hihg", "Did you mean 'high'?"]),
    ({"cells": ranging(low=1, high=2, choices=[1])}, ["give either choices, or low and high"]),
    ({"cells": ranging(low=1, high=2.5, whole=True)}, ["whole: true needs whole numbers"]),
    ({"cells": ranging(low="nan", high=2)}, ["low", "finite"]),
    ({"cells": ranging(choices=[1, 1.0, "1.0"])}, ["two choices are the same"]),
    ({"cells": [CELL], "search": {"optuna": {**SEARCH, "trails": 3}}}, ["search.optuna.trails"]),
    ({"cells": [CELL], "expected": [{**EXPECTED, "source": " "}]}, ["expected of cell 'lora' has no source"]),
    ({"cells": [CELL], "expected": [{k: v for k, v in EXPECTED.items() if k != "source"}]}, ["source is required"]),
    ({"cells": [CELL], "expected": [{**EXPECTED, "tolerance": -1}]}, ["expected[0].tolerance=-1", "at least 0"]),
    ({"cells": [CELL], "published": [{**EXPECTED, "tolerance": 1}]}, ["published[0].tolerance"]),
    (
        {"cells": [CELL], "published": [{k: v for k, v in EXPECTED.items() if k != "tolerance"}]},
        ["published[0].provenance is required"],
    ),
    ({"cells": [CELL], "seeds": [0, -1]}, ["seeds"]),
    ({"cells": [CELL], "name": "../../x"}, ["name='../../x'", "must begin with"]),
    ({"cells": [CELL], "baselin": "lora"}, ["unknown key 'baselin'", "Did you mean 'baseline'?"]),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "said"), MISTAKES, ids=[" ".join(said)[:60] for _, said in MISTAKES])
def test_mistakes_in_the_file(changes: dict[str, Any], said: list[str]) -> None:
    path = declare(**changes)
    with pytest.raises(ConfigError) as caught:
        read_sweep(path)
    message = str(caught.value)
    assert message.startswith("sweep.yaml: ")
    assert "\n" not in message
    for part in said:
        assert part in message


# What only shows when the cells are composed, or in what is typed behind the file.
COMPOSED = [
    ({"cells": tuned(optim__lr=[1e-3, -1])}, [], ["cell 'lora'", "optim.lr=-1", "greater than 0"]),
    ({"cells": tuned(peft__rnak=[1])}, [], ["cell 'lora'", "peft.rnak", "Did you mean 'rank'?"]),
    ({"cells": searching(space={"peft.rank": {"low": 2, "high": 8}})}, [], ["peft.rank=4.25", "whole number"]),
    ({"cells": searching(space={"peft.dropout": {"low": 0, "high": 1}})}, [], ["peft.dropout=1.0", "less than 1"]),
    ({"cells": [CELL]}, ["name=../../x"], ["name=../../x", "stand in sweep.yaml"]),
    ({"cells": [CELL]}, ["seed=3"], ["seed=3", "seeds=0,1 takes other seeds"]),
    ({"cells": [CELL]}, ["seeds=0,0"], ["seeds=0,0", "different whole numbers"]),
    ({"cells": [CELL]}, ["seeds=-1"], ["seeds=-1", "different whole numbers"]),
    ({"cells": [CELL]}, ["seeds=first"], ["seeds=first", "different whole numbers"]),
    ({"cells": [CELL]}, ["task=news"], ["cell 'lora'", "task"]),
    ({"cells": [CELL]}, ["peft.rnak=4"], ["cell 'lora'", "Did you mean 'rank'?"]),
    ({"cells": [CELL]}, ["optim.lr"], ["cannot read 'optim.lr'"]),
    ({"cells": tuned(optim__lr=[1])}, ["optim.lr=2"], ["optim.lr=2", "chooses optim.lr on validation"]),
    ({"cells": searching()}, ["force=true"], ["force=true", "is a search"]),
    ({"cells": [CELL], "columns": [*BASE["columns"], {"title": "x", "value": "metric.test.x"}]}, [],
     ["no record has a value at 'metric.test.x'", "Did you mean 'metrics'?"]),
    ({"cells": [CELL], "columns": [*BASE["columns"], {"title": "x", "value": "metrics.tset.x"}]}, [],
     ["there is no 'tset' under metrics", "Did you mean 'test'?"]),
    ({"cells": [CELL], "columns": [*BASE["columns"], {"title": "x", "value": "parameters.total.x"}]}, [],
     ["'parameters.total' is a number"]),
]  # fmt: skip


@pytest.mark.parametrize("verb", ["check", "sweep"])
@pytest.mark.parametrize(("changes", "typed", "said"), COMPOSED, ids=[" ".join(said)[:60] for *_, said in COMPOSED])
def test_mistakes_before_anything_runs(
    verb: str, changes: dict[str, Any], typed: list[str], said: list[str], peftlab: Peftlab, reviews: Path
) -> None:
    declare(**changes)
    result = peftlab(verb, "sweep.yaml", *typed)
    assert result.status == 2
    assert len(result.err.strip().splitlines()) == 1
    assert result.err.startswith(f"peftlab {verb}: ")
    for part in said:
        assert part in result.err
    assert not Path("outputs").exists()


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["-m"], "declares its jobs itself"),
        (["--config-dir", "x"], "--config-dir x: there is no such folder"),
        (["nowhere.yaml"], "cannot read the sweep 'nowhere.yaml'"),
    ],
)
def test_check_and_its_flags(typed: list[str], said: str, peftlab: Peftlab, reviews: Path) -> None:
    declare(cells=[CELL])
    file = [] if typed[0] == "nowhere.yaml" else ["sweep.yaml"]
    result = peftlab("check", *file, *typed)
    assert result.status == 2
    assert said in result.err


def test_check_describes_every_cell(peftlab: Peftlab, reviews: Path) -> None:
    cells = [
        {"id": "full", "overrides": ["peft=full"], "row": False},
        {"id": "lora", "from": "full", "overrides": ["peft=lora", "peft.rank=4"], "tune": {"optim.lr": [1e-3, 1e-2]}},
        {"id": "again", "overrides": ["peft=full"]},
        searching()[0] | {"id": "search"},
    ]
    declare(cells=cells)
    result = peftlab("check", "sweep.yaml", "seeds=0,1")
    assert result.status == 0, result.err
    lines = [line.split() for line in result.out.splitlines()]
    # 2 layers of width 32: LoRA on query and value has rank · (32 + 32) parameters in each of 4 matrices
    assert ["lora", "3", "0", "3", "?", f"{4 * 4 * (32 + 32):,}"] in lines
    assert ["search", "4", "0", "4", "?", f"{4 * 8 * (32 + 32):,}"] in lines
    assert [line[:4] for line in lines if line[:1] in (["full"], ["again"])] == [
        ["full", "2", "0", "2"],
        ["again", "2", "0", "2"],
    ]
    assert "4 cells, 11 jobs at most: 0 finished, 11 to run." in result.out
    assert "the same run: full, seed 0 = again, seed 0" in result.out
    assert "cost: nothing (the file's word; no record here is of a similar run)" in result.out
    assert not Path("outputs").exists()


def test_check_names_cells_that_could_not_be_built(peftlab: Peftlab, reviews: Path) -> None:
    declare(cells=[CELL, {"id": "bad", "overrides": ["peft=lora", "peft.targets=[nonexist]"]}])
    result = peftlab("check", "sweep.yaml")
    assert result.status == 2
    assert "cannot be built" in result.out
    assert "1 cell cannot be built: cell 'bad': peft.targets: 'nonexist' matches no" in result.err
    # a cell, a job and a config that would compute nothing once: seen before a run has loaded anything
    said = "peft=lora trains 'bert.encoder.layer.0.attention.self.query.deltas.all.lora_A', and below it"
    declare(cells=[CELL, {"id": "once", "overrides": ["peft=lora", "backbone.cache_frozen=true"]}])
    for words in (["sweep.yaml"], [*TINY, f"data.path={reviews}", "backbone.cache_frozen=true"]):
        refused = peftlab("check", *words)
        assert (refused.status, said in refused.err) == (2, True), refused.err
    accepted = peftlab("check", *TINY, f"data.path={reviews}", "backbone.cache_frozen=true", "peft=head")
    assert accepted.status == 0, accepted.err
    folder = peftlab("check", ".")
    assert folder.status == 2
    assert "is a folder. Give one sweep's file; there are: sweep.yaml" in folder.err


def test_check_imports_nothing_heavier_than_torch(reviews: Path) -> None:
    declare(cells=tuned(optim__lr=[1e-3, 1e-2]))
    done = peftlab_alone("check", "sweep.yaml")
    assert done.status == 0, done.err
    assert done.heavy == ["torch"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"), (None, "null"), (3, "3"), (1e-5, "1e-05"), (0.1 + 0.2, "0.30000000000000004"), ("gelu", "gelu"),
        (["query", "value"], "[query,value]"), ({"ffn_up": 4}, "{ffn_up: 4}"), ([], "[]"),
    ],
)  # fmt: skip
def test_values_as_overrides(value: Any, text: str) -> None:
    assert override_value(value) == text


def test_overrides_give_the_values_back(reviews: Path) -> None:
    values = {"optim.lr": 1e-05, "peft.targets": ["query", "ffn_up"], "peft.rank_pattern": {"ffn_up": 4}}
    config = checked(["peft=lora", "backbone=tiny", "data=text_files", "data.path=reviews.jsonl", *assignments(values)])
    found = config.plain()
    assert {key: found[key.split(".")[0]][key.split(".")[1]] for key in values} == values


def test_numbers_that_yaml_reads_as_text() -> None:
    assert [plain_number(value) for value in ("5e-4", 3, "x", True, "nan", ["1e-3"])] == [
        5e-4, 3, "x", True, "nan", ["1e-3"]
    ]  # fmt: skip


def test_a_grid_of_rows_and_its_labels() -> None:
    sweep = declared(cells=[{**CELL, "label": "rank {peft.rank}", "grid": {"peft.rank": [1, 2], "optim.lr": ["1e-3"]}}])
    assert [(cell.id, cell.label, cell.overrides[1:]) for cell in sweep.cells] == [
        ("lora_1_1e-3", "rank 1", ["peft.rank=1", "optim.lr=1e-3"]),
        ("lora_2_1e-3", "rank 2", ["peft.rank=2", "optim.lr=1e-3"]),
    ]


def test_values_that_a_label_has_no_place_for_are_added() -> None:
    """Otherwise rows of a table would have one name."""

    def labels(label: str, grid: dict[str, Any]) -> list[str]:
        return [cell.title for cell in declared(cells=[{**CELL, "label": label, "grid": grid}]).cells]

    assert labels("LoRA", {"peft.rank": [1, 2], "optim.lr": ["1e-3"]}) == ["LoRA, rank=1", "LoRA, rank=2"]
    assert labels("at {peft.rank}", {"peft.rank": [1], "optim.lr": ["1e-3", "2e-3"]}) == [
        "at 1, lr=1e-3",
        "at 1, lr=2e-3",
    ]
    both = {"data.dropout": [0, 0.5], "peft.dropout": [0, 0.5]}
    assert labels("LoRA", both)[1] == "LoRA, data.dropout=0, peft.dropout=0.5"


def test_a_label_has_places_for_keys_of_its_own_cell() -> None:
    cell = {**CELL, "overrides": [*CELL["overrides"], "peft.rank=2"], "label": "LoRA$_{r}$, rank {peft.rank}"}
    assert [one.title for one in declared(cells=[cell]).cells] == ["LoRA$_{r}$, rank 2"]
    with pytest.raises(ConfigError, match=r"cell 'lora' has a place for peft\.rnk, which is no key of its grid or its"):
        declared(cells=[{**cell, "label": "rank {peft.rnk}"}])
