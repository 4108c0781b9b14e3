from __future__ import annotations

import dataclasses
from itertools import count, islice
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from peftlab.backbones.tokenizers import ByteTokenizer
from peftlab.data.base import DataSet, Splits, Texts
from peftlab.data.module import TextDataModule, content_hash, peek, predict_batches, split_hashes
from peftlab.errors import DataError
from peftlab.objectives.parts.task import Task
from peftlab.runs.summary import _token_lines


class Words(DataSet):
    def load(self) -> Splits:
        def split(start: int, rows: int) -> Texts:
            texts = ["x" * (1 + i % 7) + " y" * (i * 37 % 23) for i in range(start, start + rows)]
            return Texts(texts, [i % 2 for i in range(rows)])

        return Splits(split(0, 50), split(50, 11), split(70, 13), ("a", "b"), "official test")


def module(tokenizer: Any, run_seed: int = 3, **config: Any) -> TextDataModule:
    dataset = Words(batch_size=8, eval_batch_size=4, max_length=16, **config)
    return TextDataModule(dataset, dataset.load(), tokenizer, run_seed)


class Recorder(LightningModule):
    """Keeps the ids of all it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.epochs: list[list[list[list[int]]]] = []
        self.evaluated = 0

    def on_train_epoch_start(self) -> None:
        self.epochs.append([])

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        self.epochs[-1].append(batch["input_ids"].tolist())
        return self.weight.sum()

    def validation_step(self, batch: dict[str, Tensor]) -> None:
        if not self.trainer.sanity_checking:
            self.evaluated += len(batch["labels"])

    def test_step(self, batch: dict[str, Tensor]) -> None:
        self.evaluated += len(batch["labels"])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(epochs: int) -> Trainer:
    return Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


# Lightning advises more loader processes on machines with more than 3 CPUs; 0 is our default on purpose.
# Lightning 2.6 asks torch 2.13 for a tree's leaves in a way that torch calls deprecated.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*:FutureWarning"),
]


def test_lightning_tells_the_sampler_the_epoch(tokenizer: Any) -> None:
    data, model = module(tokenizer), Recorder()
    expected = []
    sampler = data.train_dataloader().batch_sampler
    for epoch in range(3):
        sampler.set_epoch(epoch)  # type: ignore[union-attr]
        rows = data.tokenized("train")
        batches = [[rows[i]["input_ids"].tolist() for i in batch] for batch in sampler]  # type: ignore[union-attr]
        expected.append([[ids + [0] * (max(map(len, b)) - len(ids)) for ids in b] for b in batches])
    trainer(3).fit(model, data)
    assert model.epochs == expected
    assert model.epochs[0] != model.epochs[1] != model.epochs[2]
    assert model.evaluated == 3 * 11
    trainer(1).test(model, data, verbose=False)
    assert model.evaluated == 3 * 11 + 13
    assert tokenizer.calls == 3  # once a split, however many loaders


def test_texts_that_are_cut_are_recorded_and_said() -> None:
    dataset = Words(max_length=16)
    splits = dataset.load()
    facts = TextDataModule(dataset, splits, ByteTokenizer(), 3).token_facts()
    longer = {split: sum(len(text) + 2 > 16 for text in getattr(splits, split).texts) for split in facts}
    assert {split: of["cut"] for split, of in facts.items()} == longer
    assert facts["test"]["tokens"] == sum(min(16, len(text) + 2) for text in splits.test.texts)
    assert 0 < longer["train"] < 50
    lines = [*_token_lines({**facts, "validation": {"tokens": 9, "cut": 0}}, splits, 16)]
    assert lines == [
        f"train: {longer['train']} of 50 texts are longer than 16 tokens, and cut",
        f"test: {longer['test']} of 13 texts are longer than 16 tokens, and cut",
    ]


def seen(data: TextDataModule, epochs: int = 2) -> list[list[dict[str, list[Any]]]]:
    loader, epochs_seen = data.train_dataloader(), []
    for epoch in range(epochs):
        loader.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
        epochs_seen.append([{name: tensor.tolist() for name, tensor in batch.items()} for batch in loader])
    return epochs_seen


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_loader_processes_do_not_change_the_batches(tokenizer: Any) -> None:
    assert seen(module(tokenizer, num_workers=2)) == seen(module(tokenizer))


def test_loading_leaves_the_global_random_state(tokenizer: Any) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    data = module(tokenizer)
    seen(data)
    list(data.val_dataloader())
    assert torch.equal(before, torch.get_rng_state())


def test_the_order_seed(tokenizer: Any) -> None:
    assert seen(module(tokenizer, 3)) == seen(module(tokenizer, 3))
    assert seen(module(tokenizer, 3)) != seen(module(tokenizer, 4))
    assert seen(module(tokenizer, 3, order_seed=9)) == seen(module(tokenizer, 4, order_seed=9))


def test_processes_of_a_trainer_share_the_rows(tokenizer: Any) -> None:
    shares: dict[str, list[int]] = {"train": [], "test": []}
    for rank in (0, 1):
        data = module(tokenizer)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2)  # type: ignore[assignment]
        for name, loader in (("train", data.train_dataloader()), ("test", data.test_dataloader())):
            shares[name] += [row for batch in loader.batch_sampler for row in batch]  # type: ignore[union-attr]
    assert sorted(shares["train"]) == list(range(50))
    assert sorted(shares["test"]) == list(range(13))


def test_predict_batches_keep_the_order_and_read_ahead_by_one_batch(tokenizer: Any) -> None:
    taken = count()
    endless = (f"{'w' * (i % 5)} x" for i in taken)
    batches = list(islice(predict_batches(endless, tokenizer, max_length=8, batch_size=3), 2))
    assert [rows for rows, _ in batches] == [[0, 1, 2], [3, 4, 5]]
    assert next(taken) == 6
    assert set(batches[0][1]) == {"input_ids", "attention_mask"}
    assert batches[0][1]["input_ids"].tolist() == [[1, 3, 2, 0], [1, 3, 3, 2], [1, 4, 3, 2]]
    assert [rows for rows, _ in predict_batches(["a"], tokenizer, max_length=8, batch_size=3)] == [[0]]
    tokenizer.encode = lambda texts, max_length: [[] for _ in texts]
    with pytest.raises(DataError, match=r"Text 1 .* has no tokens"):
        list(predict_batches(["¤"], tokenizer, max_length=8, batch_size=3))


def test_peek(tokenizer: Any) -> None:
    shown = peek("a bb", tokenizer, max_length=8)
    assert shown == {"input_ids": [1, 3, 4, 2], "tokens": ["1", "3", "4", "2"], "attention_mask": [1] * 4}


def test_content_hash_sees_text_label_and_membership() -> None:
    splits = Words().load()
    changed = [
        dataclasses.replace(splits, train=splits.validation, validation=splits.train),
        dataclasses.replace(splits, test=Texts(splits.test.texts, [1 - label for label in splits.test.labels])),
        dataclasses.replace(splits, test=splits.test.take(list(range(12)))),
        dataclasses.replace(splits, test=Texts([*splits.test.texts[:-1], "z"], splits.test.labels)),
    ]
    hashes = {content_hash(each) for each in [splits, *changed]}
    assert len(hashes) == 5
    assert content_hash(Words().load()) == content_hash(splits)
    assert content_hash(dataclasses.replace(splits, provenance={"source": "elsewhere"})) in hashes


def test_split_hashes_see_the_rows_of_their_split_alone() -> None:
    splits = Words().load()
    first = split_hashes(splits)
    assert len(set(first.values())) == 3
    fewer = split_hashes(dataclasses.replace(splits, train=splits.train.take(list(range(20)))))
    assert fewer["train"] != first["train"]
    assert (fewer["validation"], fewer["test"]) == (first["validation"], first["test"])
    swapped = split_hashes(dataclasses.replace(splits, test=splits.test.take([1, 0, *range(2, 13)])))
    assert swapped["test"] != first["test"]


def test_the_split_hashes_of_a_task_are_those_of_the_task_alone() -> None:
    alone = Words().load()

    def behind(texts: Texts) -> Texts:
        return Texts(["z", *texts.texts], [0, *(label + 3 for label in texts.labels)])

    mixed = dataclasses.replace(
        alone, train=behind(alone.train), validation=behind(alone.validation), test=behind(alone.test)
    )
    assert split_hashes(mixed, Task("words", 3, 5)) == split_hashes(alone)
    assert split_hashes(mixed) != split_hashes(alone)
