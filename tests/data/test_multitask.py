"""Mixtures of data sets: shares, order, what is loaded, identity, and how mistakes are told."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peftlab.composition import checked
from peftlab.data.batching import MixtureBatchSampler
from peftlab.data.module import TextDataModule
from peftlab.data.multitask import Multitask
from peftlab.data.text_files import TextFiles
from peftlab.errors import DataError
from peftlab.records.identity import run_key
from tests.alone import peftlab_alone
from tests.conftest import Peftlab
from tests.data.two_tasks import CLASSES, SIZES, entries, write_topics

THREE: list[Any] = [{"task": name, "name": "text_files", "path": f"{name}.csv"} for name in "abc"]


@pytest.fixture
def topics(scratch: Path) -> Path:
    return write_topics(scratch)


def mixture(reviews: Path, topics: Path, **fields: Any) -> Multitask:
    tasks: list[Any] = [
        {"task": "reviews", "name": "text_files", "path": str(reviews)},
        {"task": "topics", "name": "text_files", "path": str(topics)},
    ]
    return Multitask(tasks=tasks, **fields)


@pytest.mark.parametrize(
    ("mixing", "epoch_rows", "expected"),
    [
        ("proportional", None, [300, 100, 25]),  # every row once
        ("proportional", 100, [71, 23, 6]),  # 70.59, 23.53, 5.88
        ("uniform", None, [142, 142, 141]),
        ("uniform", 9, [3, 3, 3]),
        ("square_root", None, [228, 131, 66]),  # 425 · (17.32, 10, 5) / 32.32 = 227.76, 131.50, 65.75
        ("square_root", 32, [17, 10, 5]),
    ],
)
def test_shares(mixing: Any, epoch_rows: int | None, expected: list[int]) -> None:
    found = Multitask(tasks=THREE, mixing=mixing, epoch_rows=epoch_rows).rows_an_epoch([300, 100, 25])
    assert found == expected
    assert sum(found) == (epoch_rows or 425)


def test_an_epoch_that_leaves_a_task_out_is_refused() -> None:
    with pytest.raises(DataError, match=r"10 rows an epoch with data\.mixing=proportional leave none for c\..*uniform"):
        Multitask(tasks=THREE, epoch_rows=10).rows_an_epoch([300, 100, 5])


TASKS = np.repeat([0, 1, 2], [50, 7, 23])
LENGTHS = np.random.default_rng(0).integers(3, 90, len(TASKS))
QUOTAS = [18, 20, 9]


def sampler(**more: Any) -> MixtureBatchSampler:
    return MixtureBatchSampler(LENGTHS, TASKS, QUOTAS, 6, 7, **more)


def rows(batches: list[list[int]]) -> list[int]:
    return [row for batch in batches for row in batch]


def test_every_row_comes_before_one_comes_again() -> None:
    seen: Counter[int] = Counter()
    for epoch in range(9):
        of_epoch = rows(sampler().batches(epoch))
        assert Counter(TASKS[of_epoch].tolist()) == dict(enumerate(QUOTAS))
        seen.update(of_epoch)
        for task, quota in enumerate(QUOTAS):
            own = [seen[row] for row in np.flatnonzero(task == TASKS)]
            passes, started = divmod((epoch + 1) * quota, len(own))
            assert sorted(own) == [passes] * (len(own) - started) + [passes + 1] * started
    assert len(seen) == len(TASKS), "every row of every task was visited"


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    worn = sampler()
    for epoch in range(5):
        worn.batches(epoch)
    assert worn.batches(4) == sampler().batches(4)
    assert sampler().batches(4) != sampler().batches(5)
    assert MixtureBatchSampler(LENGTHS, TASKS, QUOTAS, 6, 8).batches(4) != sampler().batches(4)
    mixed = [set(TASKS[batch].tolist()) for batch in sampler(group_by_length=False).batches(0)]
    assert max(map(len, mixed)) > 1, "batches hold rows of several tasks"
    repeated = sampler(group_by_length=False).batches(0)
    assert sorted(rows(repeated)) == sorted(rows(sampler().batches(0))), "lengths decide the batches, not the rows"


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_the_rows(world_size: int) -> None:
    ranks = [sampler(rank=rank, world_size=world_size) for rank in range(world_size)]
    for epoch in (0, 3):
        shares = [rank.batches(epoch) for rank in ranks]
        assert {len(share) for share in shares} == {len(ranks[0])}
        together = [row for share in shares for row in rows(share) if row >= 0]
        assert Counter(together) == Counter(rows(sampler().batches(epoch)))


def test_more_processes_than_rows() -> None:
    shares = [rows(sampler(rank=rank, world_size=50).batches(0)) for rank in range(50)]
    assert sum(row >= 0 for share in shares for row in share) == sum(QUOTAS)
    assert all(shares)


def test_what_is_loaded(reviews: Path, topics: Path) -> None:
    splits = mixture(reviews, topics, val_fraction=0.1).load()
    assert list(splits.label_names) == CLASSES
    assert [(task.name, *task.classes) for task in splits.tasks] == [("reviews", 0, 1), ("topics", 2, 3, 4)]
    one, two = TextFiles(path=str(reviews)).load(), TextFiles(path=str(topics)).load()
    for index, split in enumerate(("train", "validation", "test")):
        whole, first, second = getattr(splits, split), getattr(one, split), getattr(two, split)
        assert whole.texts == first.texts + second.texts, "each task is split as it is alone"
        assert whole.labels == first.labels + [2 + label for label in second.labels]
        assert (len(first), len(second)) == tuple(SIZES[name][index] for name in ("reviews", "topics"))
    assert splits.test_kind == f"reviews: {one.test_kind}; topics: {two.test_kind}"
    assert splits.provenance["rows_an_epoch"] == {"reviews": 86, "topics": 43}
    assert splits.provenance["tasks"]["topics"]["rows"] == two.provenance["rows"]


def test_limits_hold_for_each_task_unless_it_says_its_own(reviews: Path, topics: Path) -> None:
    given = mixture(reviews, topics).tasks
    assert isinstance(given[1], dict)
    tasks: list[Any] = [given[0], given[1] | {"limit_train": 12, "val_fraction": 0.2}]
    splits = Multitask(tasks=tasks, limit_train=20, limit_test=6).load()
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [20 + 12, 10 + 10, 6 + 6]
    # What an entry does not say can be changed for all of them later, as `peftlab evaluate` does.
    again = Multitask(tasks=Multitask(tasks=tasks, limit_train=20).tasks, limit_test=3).load()
    assert len(again.test) == 6


class Words:
    pad_id = 0
    fingerprint = "words"

    def encode(self, texts: Any, max_length: int) -> list[list[int]]:
        return [[1, *(len(word) for word in text.split())][:max_length] for text in texts]

    def decode(self, ids: Any) -> str:
        return " ".join(map(str, ids))


def module(data: Multitask) -> TextDataModule:
    return TextDataModule(data, data.load(), Words(), 3)


def test_batches_say_their_tasks(reviews: Path, topics: Path) -> None:
    data = module(mixture(reviews, topics, batch_size=8, eval_batch_size=5, num_workers=0))
    for loader, counts in ((data.train_dataloader(), (86, 43)), (data.test_dataloader(), (24, 12))):
        tasks: Counter[int] = Counter()
        for batch in loader:
            assert batch["task_ids"].dtype == batch["labels"].dtype
            assert batch["task_ids"].tolist() == [int(label >= 2) for label in batch["labels"]]
            tasks.update(batch["task_ids"].tolist())
        assert (tasks[0], tasks[1]) == counts
    alone = TextFiles(path=str(reviews))
    [batch, *_] = TextDataModule(alone, alone.load(), Words(), 3).train_dataloader()
    assert set(batch) == {"input_ids", "attention_mask", "labels"}


def test_an_epoch_has_the_rows_that_the_mixing_says(reviews: Path, topics: Path) -> None:
    data = module(mixture(reviews, topics, mixing="uniform", epoch_rows=100, batch_size=8))
    labels = [label for batch in data.train_dataloader() for label in batch["labels"].tolist()]
    assert Counter(label >= 2 for label in labels) == {False: 50, True: 50}


def test_identity(reviews: Path, topics: Path, tmp_path: Path) -> None:
    def key(tasks: str, *more: str) -> str:
        return run_key(checked(["data=multitask", tasks, *more]))

    here = key(entries(reviews, topics))
    moved = tmp_path / "elsewhere.jsonl"
    moved.write_bytes(topics.read_bytes())
    assert key(entries(reviews, moved)) == here, "the same content elsewhere is the same run"
    assert key(entries(reviews, topics, ", holdout_fraction: 0.2")) == here, "so is a default that is written out"
    assert key(entries(reviews, topics), "data.num_workers=2") == here
    assert key(entries(reviews, topics, ", limit_train: 20"), "data.limit_train=20") == key(
        entries(reviews, topics), "data.limit_train=20"
    )
    others = [
        key(entries(reviews, topics).replace("task: topics", "task: themes")),
        key(entries(reviews, topics, ", holdout_fraction: 0.3")),
        key(entries(reviews, topics, ", limit_train: 20")),
        key(entries(reviews, topics), "data.mixing=uniform"),
        key(entries(reviews, topics), "data.epoch_rows=50"),
        key(entries(topics, reviews)),
    ]
    moved.write_text(topics.read_text().replace("orbit", "earth"))
    assert len({here, *others, key(entries(reviews, moved))}) == len(others) + 2


def test_what_it_writes_down_is_read_again_as_the_same(reviews: Path, topics: Path) -> None:
    first = mixture(reviews, topics, limit_test=5)
    assert Multitask(tasks=first.tasks, limit_test=5) == first
    assert json.loads(json.dumps(first.tasks)) == first.tasks


def test_a_mistake_in_a_task_imports_no_torch() -> None:
    done = peftlab_alone("check", "data=multitask", "data.tasks=[{name: bbc_news, holdout: 1}]")
    assert done.status == 2
    assert done.heavy == []


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        ("[imdb_pakaged]", ["data.tasks[0].name=imdb_pakaged", "Did you mean 'imdb_packaged'?", "bbc_news"]),
        ("[bbc_news,bbc_news]", ["data.tasks[1] is called 'bbc_news'", "data.tasks[0]", "task:"]),
        ("[]", ["data.tasks is empty"]),
        ("[multitask]", ["data.tasks[0].name=multitask"]),
        ("[{_target_: peftlab.data.multitask.Multitask, task: t}]", ["data.tasks[0]", "cannot hold another one"]),
        ("[{_target_: peftlab.peft.lora.LoRA, task: t}]", ["data.tasks[0]._target_", "DataSet"]),
        ("[bbc_news,{holdout_fraction: 0.1}]", ["data.tasks[1]", "neither name nor _target_"]),
        ("[{name: bbc_news, _target_: a.B}]", ["data.tasks[0]", "both name and _target_"]),
        ("[{name: bbc_news, holdout: 1}]", ["data.tasks[0].holdout", "Did you mean 'holdout_fraction'?"]),
        ("[{name: bbc_news, holdout_fraction: 2}]", ["data.tasks[0].holdout_fraction=2", "less than 1"]),
        ("[{name: bbc_news, batch_size: 3}]", ["data.tasks[0].batch_size", "Set data.batch_size"]),
        ("[{name: bbc_news, task: a/b}]", ["data.tasks[0].task=a/b", "letters"]),
        ("[{_target_: peftlab.data.bbc_news.BBCNews}]", ["data.tasks[0].task=None"]),
        (
            "[{name: text_files, task: t, path: no.csv}]",
            ["data.tasks[0] (t)", "data.tasks[0].path=no.csv", "no such file"],
        ),
    ],
)
def test_wrong_tasks(peftlab: Peftlab, tasks: str, said: list[str]) -> None:
    result = peftlab("check", "data=multitask", f"data.tasks={tasks}")
    assert result.status == 2
    for part in said:
        assert part in result.err
    assert "Traceback" not in result.err


def test_wrong_data(peftlab: Peftlab, reviews: Path, topics: Path) -> None:
    common = ["train", "data=multitask", "backbone=tiny", "logger=none", "name=wrong"]
    one = f"{__package__}.two_tasks.OneClass"
    one_class = f"data.tasks=[{{task: r, name: text_files, path: {reviews}}},{{task: one, _target_: {one}}}]"
    for arguments, said in (
        ([entries(reviews, topics), "data.limit_train=50"], ["data.tasks[1] (topics): data.limit_train=50", "43"]),
        ([entries(reviews, topics, ", limit_train: 44")], ["data.tasks[1].limit_train=44"]),
        ([one_class], ["data.tasks[1] (one)", "only 1 class", "at least 2"]),
        ([entries(reviews, topics), "data.epoch_rows=1"], ["leave none for topics"]),
        (
            [
                entries(reviews, topics, ", limit_test: 3").replace(f"{reviews}}}", f"{reviews}, limit_test: 3}}"),
                "data.limit_test=4",
            ],
            ["data.limit_test=4 has no effect"],
        ),
    ):
        result = peftlab(*common, *arguments)
        assert result.status == 2, result.err
        for part in said:
            assert part in result.err
        assert not list(Path().glob("outputs/wrong/*"))
