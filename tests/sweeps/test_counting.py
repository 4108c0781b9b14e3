"""Parameters of the cells of a sweep are counted once a shape."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from peftlab.composition import checked
from peftlab.runs.summary import trainable_in_words
from peftlab.sweeps import counting
from peftlab.sweeps.counting import count_all
from tests.conftest import Peftlab
from tests.runs.small_runs import CLASSIFIER, finished, record_of


@pytest.mark.parametrize("known", [True, False])
def test_check_counts_what_training_counts(peftlab: Peftlab, reviews: Path, known: bool) -> None:
    """A text classifier's words and classes are those of its data; of a finished run its record knows them."""
    trained = record_of(finished(reviews))["parameters"]
    more = [] if known else ["seed=17"]
    said = " ".join(peftlab("check", *CLASSIFIER, f"data.path={reviews}", *more).out.split())
    assert f"trainable {trainable_in_words(trained)} key" in said
    assert ("state finished" in said) == known
    assert "trainable" not in peftlab("check", *CLASSIFIER, f"data.path={reviews}", *more, "--no-counts").out


def test_what_check_cannot_count(peftlab: Peftlab, monkeypatch: pytest.MonkeyPatch) -> None:
    """rank · (in + out) of query and value in two layers that are 32 wide; a model of the hub is not fetched."""
    said = " ".join(peftlab("check", "data=ag_news", "backbone=tiny", "peft.rank=2").out.split())
    assert "trainable 512 without the head, whose size the data decides" in said
    said = " ".join(peftlab("check", "data=ag_news", "backbone=bert_base").out.split())
    assert "trainable not known before the model is here (" in said
    refused = peftlab("check", "data=ag_news", "backbone=tiny", "peft.targets=[nowhere]")
    assert refused.status == 2
    assert "nowhere" in refused.err


TINY = ("data=text_files", "data.path=x.csv", "backbone=tiny", "peft=lora")


@pytest.mark.parametrize("apart", [True, False])
def test_cells_that_differ_in_no_shape_are_counted_once(monkeypatch: pytest.MonkeyPatch, apart: bool) -> None:
    """In a process that has not imported transformers by another, and without the hub in both."""
    words = [(f"seed={seed}", f"optim.lr=1e-{rank}", f"peft.rank={rank}") for seed in range(3) for rank in (1, 2)]
    configs = [checked([*TINY, *more]) for more in words]
    given: list[Any] = []
    run, count = subprocess.run, counting._count

    def watched(*arguments: Any, **options: Any) -> Any:
        given.extend(json.loads(options["input"]))
        assert options["env"]["HF_HUB_OFFLINE"] == "1"
        return run(*arguments, timeout=120, **options)

    def watched_here(one: dict[str, Any]) -> Any:
        given.append(one)
        assert huggingface_hub.is_offline_mode()
        return count(one)

    monkeypatch.setattr(subprocess, "run", watched)
    monkeypatch.setattr(counting, "_count", watched_here)
    monkeypatch.setattr(counting, "_imported", lambda: not apart)
    found = [one.number for one in count_all(configs)]
    assert len(given) == 2
    # rank · (in + out) of query and value in two layers that are 32 wide
    assert found == [rank * (32 + 32) * 2 * 2 for _ in range(3) for rank in (1, 2)]
    assert not huggingface_hub.is_offline_mode()
