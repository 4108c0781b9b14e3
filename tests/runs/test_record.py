"""What a record says of the data it stands on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.conftest import Peftlab
from tests.data.two_tasks import entries, write_topics
from tests.runs.small_runs import record_of, train


def hashes(folder: Path) -> Any:
    return record_of(folder)["data"]["split_hashes"]


def test_a_record_tells_which_rows_it_was_tested_on(peftlab: Peftlab, reviews: Path) -> None:
    first = hashes(train(peftlab, reviews, "trainer.max_epochs=1"))
    fewer = hashes(train(peftlab, reviews, "trainer.max_epochs=1", "data.limit_train=20"))
    other = hashes(train(peftlab, reviews, "trainer.max_epochs=1", "data.split_seed=1"))
    assert (fewer["validation"], fewer["test"]) == (first["validation"], first["test"])
    assert fewer["train"] != first["train"]
    assert other["test"] != first["test"]


def test_a_record_of_several_tasks_tells_it_for_each_of_them(peftlab: Peftlab, reviews: Path) -> None:
    alone = hashes(train(peftlab, reviews, "trainer.max_epochs=1"))
    mixture = ["data=multitask", entries(reviews, write_topics(Path.cwd())), "backbone=text_classifier"]
    result = peftlab(
        "train", *mixture, "logger=none", "peft=full", "trainer.max_epochs=1", "trainer.progress_bar=false", "name=two"
    )
    assert result.status == 0, result.err
    (folder,) = Path("outputs/two").iterdir()
    data = record_of(folder)["data"]
    assert data["tasks"]["reviews"]["split_hashes"] == alone
    assert len({data["split_hashes"]["test"], *(task["split_hashes"]["test"] for task in data["tasks"].values())}) == 3
