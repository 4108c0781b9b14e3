"""What an objective says of its head decides whether it trains, before a config has a key."""

from __future__ import annotations

from typing import Any

import pytest

from peftlab.composition import composed
from peftlab.config import RunConfig, check, from_plain
from peftlab.errors import ConfigError
from peftlab.objectives.base import objectives
from peftlab.objectives.classification import Classification
from peftlab.records.identity import run_key

COMMON = ["data=text_files", "data.path=none.csv", "backbone=tiny", "logger=none"]


def config(*overrides: str) -> RunConfig:
    return check(composed([*COMMON, *overrides]))


@pytest.mark.parametrize("objective", ["classification", "regression"])
def test_a_new_head_trains_unless_it_is_told_not_to(objective: str) -> None:
    assert objectives()[objective].head == "new"
    for said, trains in ((None, True), ("true", True), ("false", False)):
        found = config(f"data.objective={objective}", *([] if said is None else [f"backbone.train_head={said}"]))
        assert found.trains_head is trains
        assert found.plain()["backbone"]["train_head"] is trains, "written down as what it is"


def test_null_is_the_same_run_as_true_and_another_than_false(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peftlab.data.text_files.TextFiles.files", lambda self: {})
    keys = [run_key(config(*more)) for more in ([], ["backbone.train_head=true"], ["backbone.train_head=false"])]
    assert keys[0] == keys[1] != keys[2]


class OwnHead(Classification):
    """As a language model's: there, pre-trained, and left alone unless asked for."""

    head = "own"
    head_trains = False


class NoHead(Classification):
    about = "a contrast, which compares what the trunk says"
    head = "none"


def with_objective(monkeypatch: pytest.MonkeyPatch, one: Classification, train_head: bool | None) -> RunConfig:
    plain: dict[str, Any] = config().plain()
    plain["backbone"]["train_head"] = train_head
    monkeypatch.setattr("peftlab.data.base.DataSet.what_is_learned", lambda self: one)
    return from_plain(plain)


def test_the_models_own_head_is_left_alone_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert with_objective(monkeypatch, OwnHead(), None).plain()["backbone"]["train_head"] is False
    assert with_objective(monkeypatch, OwnHead(), True).trains_head
    assert OwnHead().head_size(["a", "b"]) == 0, "nothing to build"
    assert Classification().head_size(["a", "b"]) == 2


def test_a_head_that_is_not_there_cannot_train(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not with_objective(monkeypatch, NoHead(), None).trains_head
    with pytest.raises(ConfigError) as caught:
        with_objective(monkeypatch, NoHead(), True)
    assert str(caught.value) == (
        "backbone.train_head=true is not allowed: A contrast, which compares what the trunk says, has no head to "
        "train. Set it to null."
    )


def test_a_line_that_ends_with_a_question_has_no_stop_behind_it() -> None:
    with pytest.raises(ConfigError) as caught:
        config("data.objective=regresion")
    assert "classification, multiple_choice, regression. Did you mean 'regression'?" in str(caught.value)
    assert "?." not in str(caught.value)
