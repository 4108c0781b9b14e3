"""Tokenised splits as loaders: the one LightningDataModule, and the same batches for prediction."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Literal, Protocol

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from peftlab.backbones.base import Tokenizer
from peftlab.data.base import DataSet, Splits, Texts
from peftlab.data.batching import (
    FULL,
    STAND_IN,
    STATES,
    EvaluationBatchSampler,
    LengthGroupedBatchSampler,
    MixtureBatchSampler,
    collate,
    pad,
    stand_in,
)
from peftlab.data.target_tokens import TokenizedTargets, tokenize_targets
from peftlab.data.tokens import TokenizedTexts, cut_rows, tokenize
from peftlab.data.truncation import truncating
from peftlab.errors import DataError
from peftlab.objectives.base import Label, Objective
from peftlab.objectives.parts.task import Task, TaskOf
from peftlab.seeding import derive_seed

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
Batch = dict[str, Tensor]


class RowStates(Protocol):
    """What the frozen part of a model makes of each row: (T, d) or (d,)."""

    def __getitem__(self, row: int, /) -> Tensor: ...


class TextDataModule(LightningDataModule):
    """Train, validation and test loaders over token ids.

    A batch is ``input_ids`` (B, T) int64, ``attention_mask`` (B, T) int64 and ``labels`` (B,), of classes int64, padded
    on the right; of several tasks it has ``task_ids`` (B,) int64 too, and of tasks with different objectives
    ``labels`` of each (:class:`~peftlab.data.batching.Collate`). Batches depend on the config and ``order_seed``
    alone: not on ``num_workers``, and not on the global random state, which loading leaves as it was. Use
    ``Trainer(use_distributed_sampler=False)``: the samplers share the rows among the trainer's processes themselves.

    Args:
        dataset: its batch sizes, ``max_length``, ``group_by_length`` and ``num_workers`` are used.
        splits: what ``dataset.load()`` returned.
        tokenizer: the backbone's.
        order_seed: decides the order of the training batches, unless ``dataset.order_seed`` does.
    """

    def __init__(self, dataset: DataSet, splits: Splits, tokenizer: Tokenizer, order_seed: int) -> None:
        super().__init__()
        self.dataset = dataset
        self.splits = splits
        self.tokenizer = truncating(tokenizer, dataset.truncation)
        self.order_seed = order_seed if dataset.order_seed is None else dataset.order_seed
        self.start = (0, 0)
        """Epoch that training begins with, and batches of it that are done; a resumed run sets it."""
        self.notes_padding = False
        """Whether batches say that they are full (:data:`~peftlab.data.batching.FULL`)."""
        self.states: dict[SplitName, RowStates] = {}
        """What the frozen part of the model makes of the rows, for the splits that it is kept of."""
        self._encoders = {split: dataset.row_encoder(tokenizer, training=split == "train") for split in SPLITS}
        self._tokenized: dict[SplitName, TokenizedTexts] = {}
        self._token_facts: dict[str, dict[str, int]] = {}
        self._task_of = TaskOf(splits.tasks) if splits.tasks else None

    def prepare_data(self) -> None:
        """Tokenise all splits into the cache, in one process of each machine."""
        for split in SPLITS:
            self.tokenized(split)

    def tokenized(self, split: SplitName) -> TokenizedTexts:
        """The token ids of a split, tokenised now unless they are cached."""
        if split not in self._tokenized:
            texts: Texts = getattr(self.splits, split)
            if (encoder := self._encoders[split]) is None:
                found = tokenize(texts, self.tokenizer, self.dataset.max_length, split=split)
            else:
                found = tokenize_targets(texts, encoder, self.dataset.max_length, split=split)
            self._tokenized[split] = found
        return self._tokenized[split]

    def token_facts(self) -> dict[str, dict[str, int]]:
        """What a record says of tokens, by split: how many there are, of texts that were cut, and of targets."""
        learned = self.dataset.what_is_learned()
        found = self._token_facts
        for split in SPLITS if not found else ():
            rows = self.tokenized(split)
            if isinstance(rows, TokenizedTargets) and isinstance(learned, Objective):
                targets = [learned.weight(rows[row]) for row in range(len(rows))]
                found[split] = rows.facts() | {"targets": sum(targets), "rows_without_targets": targets.count(0)}
            elif not isinstance(rows, TokenizedTargets):
                texts: Texts = getattr(self.splits, split)
                cut = cut_rows(texts, self.tokenizer, self.dataset.max_length, lengths=rows.lengths, split=split)
                found[split] = {"tokens": int(rows.lengths.sum()), "cut": len(cut)}
        return found

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches in random order, another one each epoch."""
        rows = self.tokenized("train")
        rank, world_size = self._rank_and_world_size()
        batch_size, seed = self.dataset.batch_size, self.order_seed
        how: dict[str, Any] = {
            "group_by_length": self.dataset.group_by_length,
            "rank": rank,
            "world_size": world_size,
            "global_batch_size": self.dataset.global_batch_size,
        }
        learned = self.dataset.what_is_learned()
        if world_size > 1 and isinstance(learned, Objective) and learned.weighs:
            how["weights"] = [learned.weight(rows[row]) for row in range(len(rows))]
        if self._task_of is not None:
            tasks = [self._task_of(label) for label in rows.labels]
            sizes = [tasks.count(task) for task in range(len(self.splits.tasks))]
            quotas = self.dataset.rows_an_epoch(sizes)
            sampler: LengthGroupedBatchSampler = MixtureBatchSampler(
                rows.lengths, tasks, quotas, batch_size, seed, **how
            )
        else:
            sampler = LengthGroupedBatchSampler(rows.lengths, batch_size, seed, **how)
        # Lightning makes the first iterator before it restores a checkpoint, and so before it knows the epoch.
        sampler.begin_at(*self.start)
        packed_to = self.dataset.max_length if self.dataset.packs() else None
        return self._loader(rows, sampler, "train", packed_to)

    def val_dataloader(self) -> DataLoader[Any]:
        """Every validation row once."""
        return self._evaluation_loader("validation")

    def test_dataloader(self) -> DataLoader[Any]:
        """Every test row once."""
        return self._evaluation_loader("test")

    def _evaluation_loader(self, split: SplitName) -> DataLoader[Any]:
        rows = self.tokenized(split)
        rank, world_size = self._rank_and_world_size()
        sampler = EvaluationBatchSampler(
            rows.lengths,
            self.dataset.eval_batch_size,
            group_by_length=self.dataset.group_by_length,
            rank=rank,
            world_size=world_size,
        )
        return self._loader(rows, sampler, split)

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Say whether it is full, while the mask is on the host."""
        if self.notes_padding:
            batch[FULL] = bool(batch["attention_mask"].all())
        return batch

    def _rank_and_world_size(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _loader(
        self, rows: TokenizedTexts, sampler: Sampler[list[int]], split: SplitName, packed_to: int | None = None
    ) -> DataLoader[Any]:
        # A loader draws a base seed from the global generator at the start of every epoch unless it has
        # its own; dropout would then depend on how many loaders were started before.
        generator = torch.Generator()
        generator.manual_seed(derive_seed(self.order_seed, "loader"))
        return DataLoader(
            _MapStyle(rows, self.states.get(split)),
            batch_sampler=sampler,
            collate_fn=collate(
                self.tokenizer.pad_id,
                self.dataset.what_is_learned(),
                self._task_of,
                packed_to,
                multiple_of=self.dataset.pad_to_multiple_of,
                at_most=self.dataset.max_length,
            ),
            num_workers=self.dataset.num_workers,
            persistent_workers=self.dataset.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=generator,
        )


class _MapStyle(Dataset[dict[str, Any]]):
    """Torch's view of tokenised rows."""

    def __init__(self, rows: TokenizedTexts, states: RowStates | None = None) -> None:
        self.rows, self.states = rows, states

    def __len__(self) -> int:
        return len(self.rows)

    def texts_of(self, rows: list[int]) -> list[int]:
        """The texts that token rows are of: themselves, unless a text may have several."""
        if isinstance(self.rows, TokenizedTargets):
            return [int(self.rows.text_of[row]) for row in rows]
        return rows

    def __getitem__(self, row: int) -> dict[str, Any]:
        found = self.rows[row] if row >= 0 else {**self.rows[stand_in(row)], STAND_IN: True}
        if self.states is not None:
            found[STATES] = self.states[row if row >= 0 else stand_in(row)]
        return found


def predict_batches(
    texts: Iterable[str], tokenizer: Tokenizer, *, max_length: int, batch_size: int
) -> Iterator[tuple[list[int], Batch]]:
    """Row numbers (from 0) and batch, without labels, of ``texts`` in their order.

    Reads ``texts`` a batch at a time, so an endless stream will do.

    Raises:
        DataError: for a text that has no tokens.
    """
    numbered = enumerate(texts)
    while chunk := list(islice(numbered, batch_size)):
        encoded = tokenizer.encode([text for _, text in chunk], max_length)
        for (row, text), ids in zip(chunk, encoded, strict=True):
            if not ids:
                raise DataError(f"Text {row + 1} ({text[:60]!r}) has no tokens: there is nothing to predict from.")
        yield [row for row, _ in chunk], pad(encoded, tokenizer.pad_id)


def peek(text: str, tokenizer: Tokenizer, *, max_length: int) -> dict[str, Any]:
    """What the model will see of ``text``: ids, each id as text, and the attention mask."""
    [ids] = tokenizer.encode([text], max_length)
    return {
        "input_ids": list(ids),
        "tokens": [tokenizer.decode([token]) for token in ids],
        "attention_mask": [1] * len(ids),
    }


def content_hash(splits: Splits) -> str:
    """sha256 over every text, its label and the split it is in: the record's ``data.hash``."""
    digest = hashlib.sha256()
    for name in SPLITS:
        texts: Texts = getattr(splits, name)
        digest.update(f"{name}\0{len(texts)}\0".encode())
        _add_rows(digest, texts)
    return digest.hexdigest()


def split_hashes(splits: Splits, task: Task | None = None) -> dict[str, str]:
    """16 hex digits over the texts and labels of each split, in order: alike, the runs saw the same rows.

    With ``task``, of its rows alone, with the labels that they have where it is the only task.
    """
    found: dict[str, str] = {}
    for name in SPLITS:
        texts: Texts = getattr(splits, name)
        if task is not None:
            texts = splits.of_task(texts, task)
        digest = hashlib.sha256()
        _add_rows(digest, texts)
        found[name] = digest.hexdigest()[:16]
    return found


def row_hash(text: str, label: Label) -> str:
    """16 hex digits over one row: alike, it is the same text with the same label."""
    return hashlib.sha256(_row(text, label)).hexdigest()[:16]


def _add_rows(digest: hashlib._Hash, texts: Texts) -> None:
    for text, label in zip(texts.texts, texts.labels, strict=True):
        digest.update(_row(text, label))


def _row(text: str, label: Label) -> bytes:
    raw = text.encode("utf-8", "surrogatepass")
    return f"{label}\0{len(raw)}\0".encode() + raw
