"""Tokens in the environment reach no file: not of a run, of a sweep with its jobs and logs, or of a cache."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from tests.conftest import Peftlab
from tests.runs.small_runs import CLASSIFIER

NAMES = (
    "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "DB_PASSWORD",
    "SERVICE_CREDENTIALS", "SSH_PRIVATE_KEY",
)  # fmt: skip


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, f"sesame-{name}")


def told() -> list[str]:
    """Files below the current folder, caches included, with a secret in their content or name."""
    return [str(path) for path in Path.cwd().rglob("*") if "sesame" in str(path) or _holds(path)]


def _holds(path: Path) -> bool:
    return path.is_file() and b"sesame" in path.read_bytes()


def test_of_a_run_that_fails_and_one_that_ends(peftlab: Peftlab, reviews: Path) -> None:
    words = ("train", *CLASSIFIER, "data.path=reviews.jsonl", "logger=csv")
    assert peftlab(*words, "peft.rank=999").status == 2
    assert peftlab(*words).status == 0
    assert told() == []
    Path("told").write_text(os.environ["HF_TOKEN"])
    assert told() == [str(Path.cwd() / "told")], "else nothing is looked at"


def test_of_a_sweep(peftlab: Peftlab, reviews: Path) -> None:
    declared = {
        "name": "small", "title": "t", "source": "s", "command": "c", "cost": "c", "selection": "s", "expected": [],
        "seeds": [0], "metric": "metrics.test.accuracy", "overrides": [*CLASSIFIER, "data.path=reviews.jsonl"],
        "cells": [
            {"id": "good"},
            {"id": "bad", "overrides": ["data._target_=tests.sweeps.odd_data.OddData", "+data.act=refuse"]},
        ],
        "columns": [{"title": "accuracy", "value": "metrics.test.accuracy"}],
    }  # fmt: skip
    Path("small.yaml").write_text(yaml.safe_dump(declared))
    assert peftlab("sweep", "small.yaml", "--jobs", "1").status == 1
    assert len(list(Path("outputs/small").glob("*/record.json"))) >= 1
    assert list(Path("outputs/small/.logs").iterdir())
    assert told() == []


@pytest.mark.parametrize("name", NAMES)
def test_no_config_may_ask_for_one(peftlab: Peftlab, reviews: Path, name: str) -> None:
    Path("mine/experiment").mkdir(parents=True)
    Path("mine/experiment/theirs.yaml").write_text(f"# @package _global_\nname: ${{oc.env:{name}}}\n")
    result = peftlab("check", "--config-dir", "mine", "experiment=theirs")
    assert result.status == 2
    assert f"{name} holds a secret by its name" in result.err
    assert "sesame" not in result.err + result.out


def test_other_variables_are_read(peftlab: Peftlab, reviews: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_NAME", "mine")
    words = ("name=${oc.env:MY_NAME}", "data.path=${oc.env:NOT_SET,reviews.jsonl}")
    result = peftlab("check", *CLASSIFIER, *words)
    assert result.status == 0, result.err
    assert "outputs/mine/" in result.out
