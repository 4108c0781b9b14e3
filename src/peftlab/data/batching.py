"""Which rows form a batch, in which order, and how a batch is padded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Sampler

from peftlab.data.packing import packed
from peftlab.objectives.base import Label, Learned, Objective
from peftlab.objectives.parts.mixture import Mixture
from peftlab.seeding import derive_seed

STAND_IN = "stand_in"
"""Marks a row that a process without rows of a batch computes beside the others, and that does not count."""
STATES = "trunk_states"
"""In a row and in a batch, where they are kept: what the frozen part of the model makes of the text."""
WEIGHT = "weight"
"""In a batch whose objective weighs its rows: what they count together, a plain number on the host."""
FULL = "full"
"""In a batch, where it is asked for: whether no row of it is padded, as the host can tell without asking the device."""
BATCHES_IN_CHUNK = 50
"""Batches sorted by length together: enough to save padding, few enough to keep the order random."""


def pad(
    rows: Sequence[Sequence[int] | npt.NDArray[np.int32]],
    pad_id: int,
    *,
    multiple_of: int | None = None,
    at_most: int | None = None,
) -> dict[str, Tensor]:
    """``input_ids`` and ``attention_mask``, both (B, T) int64, padded on the right.

    Args:
        rows: token ids of each.
        pad_id: what they are padded with.
        multiple_of: T is the length of the longest row; with this, the next multiple of it.
        at_most: but no more than this, or the longest row.
    """
    width = max(len(row) for row in rows)
    if multiple_of is not None:
        rounded = -(-width // multiple_of) * multiple_of
        width = rounded if at_most is None else max(width, min(rounded, at_most))
    input_ids = np.full((len(rows), width), pad_id, dtype=np.int64)  # (B, T)
    attention_mask = np.zeros((len(rows), width), dtype=np.int64)
    for i, row in enumerate(rows):
        input_ids[i, : len(row)] = row
        attention_mask[i, : len(row)] = 1
    return {"input_ids": torch.from_numpy(input_ids), "attention_mask": torch.from_numpy(attention_mask)}


def padded_states(states: Sequence[Tensor], width: int) -> Tensor:
    """Of rows (T, d) one tensor (B, ``width``, d), zero on padding; rows of one vector, (d,) or (1, d), as they are."""
    if states[0].dim() == 1 or all(len(one) == 1 for one in states):
        return torch.stack(list(states))
    padded = states[0].new_zeros(len(states), width, states[0].shape[-1])
    for row, one in zip(padded, states, strict=True):
        row[: len(one)] = one
    return padded


class Collate:
    """Rows of :class:`~peftlab.data.tokens.TokenizedTexts` to one padded batch with ``labels`` (B,).

    With ``task_of``, which says the task of a label, the batch also has ``task_ids`` (B,) int64. Of tasks with
    different objectives ``labels`` are :data:`~peftlab.objectives.parts.mixed.Targets`.
    ``padding`` goes to :func:`pad`. With ``packed_to`` the rows stand behind each other in rows of so many tokens, and
    the batch has ``position_ids`` (B, T) int64 too, 0 on padding.
    """

    def __init__(
        self,
        pad_id: int,
        learned: Learned,
        task_of: Callable[[Label], int] | None = None,
        packed_to: int | None = None,
        **padding: int | None,
    ) -> None:
        self.packed_to = packed_to
        self.pad_id = pad_id
        self.learned = learned
        self.task_of = task_of
        self.padding = padding

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """One batch of ``rows``; ``batch["stand_in"]`` is there, and true, if they are not to count."""
        stands_in = any(row.get(STAND_IN) for row in rows)
        if self.packed_to is not None:
            rows = packed(rows, self.packed_to)
        batch: dict[str, Any] = dict(pad([row["input_ids"] for row in rows], self.pad_id, **self.padding))
        if self.packed_to is not None:
            batch["position_ids"] = pad([row["positions"] for row in rows], 0, **self.padding)["input_ids"]
        if stands_in:
            batch[STAND_IN] = True
        if STATES in rows[0]:
            batch[STATES] = padded_states([row[STATES] for row in rows], batch["input_ids"].shape[1])
        batch["labels"] = self._labels(rows)
        if isinstance(self.learned, Objective) and self.learned.weighs:
            batch[WEIGHT] = sum(map(self.learned.weight, rows))
        if self.task_of is not None:
            batch["task_ids"] = torch.tensor([self.task_of(row["label"]) for row in rows], dtype=torch.int64)
        return batch

    def _labels(self, rows: list[dict[str, Any]]) -> Any:
        if isinstance(self.learned, Mixture):
            from peftlab.objectives.parts.mixed import targets_of

            return targets_of(self.learned, rows)
        assert isinstance(self.learned, Objective)
        return self.learned.target(rows)


def collate(
    pad_id: int,
    learned: Learned,
    task_of: Callable[[Label], int] | None = None,
    packed_to: int | None = None,
    **padding: int | None,
) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    """The ``collate_fn`` of a loader (a class instance, so that loader processes can be spawned)."""
    return Collate(pad_id, learned, task_of, packed_to, **padding)


def weight_of(batch: Mapping[str, Any]) -> int:
    """What a batch counts in the mean of a step, an epoch or a split: its rows, or what its objective counts.

    0 where its rows only stand in. Loss, log, accumulation and processes all ask here; what the processes have together
    (:meth:`LengthGroupedBatchSampler.sizes`) is summed from the same :meth:`Objective.weight`.
    """
    if STAND_IN in batch:
        return 0
    return int(batch[WEIGHT]) if WEIGHT in batch else len(batch["labels"])


class LengthGroupedBatchSampler(Sampler[list[int]]):
    """Training batches whose order is a pure function of ``(seed, epoch)``.

    A random permutation of all rows is cut into chunks of 50 batches, each chunk is sorted by length and
    cut into batches, and the batches are shuffled: little padding, random batches, every row once.

    Across processes a batch is cut from ``batch_size * world_size`` rows and each rank takes every
    ``world_size``-th of them, so the ranks work on equal lengths and all have the same number of batches.
    The rows that fill no batch form a smaller one, shared out evenly: sizes differ by one at most. A rank that has none
    of it gets a stand-in, ``~row`` (:func:`stand_in`). Which rows a step has is thus the same for any number of ranks
    with the same ``batch_size * world_size``; or, with ``global_batch_size``, for any number of ranks. A step then has
    :func:`micro_batches` batches, the last and smaller one of an epoch too: parts of equal lengths and of equal sizes,
    but for a row.

    Args:
        lengths: tokens of each row, (N,).
        batch_size: rows of a batch in this process.
        seed: of the order.
        group_by_length: False shuffles and cuts, nothing else.
        rank: of this process.
        world_size: number of processes.
        global_batch_size: rows of a step in all processes, in batches of at most ``batch_size``; None: a batch is one.
        weights: what each row counts in a step, (N,); None: 1.
    """

    def __init__(
        self,
        lengths: npt.ArrayLike,
        batch_size: int,
        seed: int,
        *,
        group_by_length: bool = True,
        rank: int = 0,
        world_size: int = 1,
        global_batch_size: int | None = None,
        weights: npt.ArrayLike | None = None,
    ) -> None:
        self.lengths = np.asarray(lengths)
        self._weights = None if weights is None else np.asarray(weights)
        self.batch_size = batch_size
        self.seed = seed
        self.group_by_length = group_by_length
        self.rank, self.world_size = rank, world_size
        self._together = global_batch_size or batch_size * world_size
        self._parts = micro_batches(global_batch_size, batch_size, world_size)
        self.epoch = 0
        self._begun = (0, 0)

    @property
    def epoch_rows(self) -> int:
        """Rows of an epoch, in all processes."""
        return len(self.lengths)

    def order(self, epoch: int, random: np.random.Generator) -> npt.NDArray[np.int64]:
        """The rows of ``epoch`` in random order, before they are cut into batches."""
        return random.permutation(len(self.lengths))

    @property
    def sampler(self) -> LengthGroupedBatchSampler:
        """Itself: where Lightning looks for ``set_epoch`` is ``dataloader.batch_sampler.sampler``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration has."""
        self.epoch = epoch

    def begin_at(self, epoch: int, batches: int) -> None:
        """Choose ``epoch``; iterations of it leave out its first ``batches``, which are done already."""
        self._begun = (epoch, batches)
        self.set_epoch(epoch)

    def batches(self, epoch: int) -> list[list[int]]:
        """This rank's batches of ``epoch``, those that are done too."""
        return [
            part[self.rank :: self.world_size].tolist() or [stand_in(int(group[0]))]
            for group in self._groups(epoch)
            for part in np.array_split(group, self._parts)
        ]

    def sizes(self, epoch: int) -> list[int]:
        """What each batch of ``epoch`` counts in all ranks together: its rows, or their weights."""
        parts = [part for group in self._groups(epoch) for part in np.array_split(group, self._parts)]
        return [len(part) if self._weights is None else int(self._weights[part].sum()) for part in parts]

    def _groups(self, epoch: int) -> list[npt.NDArray[np.int64]]:
        """What all ranks together have in each batch of ``epoch``, or in each step of a ``global_batch_size``."""
        random = np.random.default_rng(derive_seed(self.seed, "batches", epoch))
        rows = self.order(epoch, random)
        together = self._together
        # Split off before sorting: otherwise the smaller batch would always be made of the longest texts.
        rows, rest = np.split(rows, [len(rows) - len(rows) % together])
        chunk = together * BATCHES_IN_CHUNK
        chunks = [self._by_length(rows[start : start + chunk]) for start in range(0, len(rows), chunk)]
        groups = [part[start : start + together] for part in chunks for start in range(0, len(part), together)]
        if len(rest):
            groups.append(self._by_length(rest))
        shuffled = random.permutation(len(groups))
        return [groups[i] for i in shuffled]

    def _by_length(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        if not self.group_by_length:
            return rows
        sorted_rows: npt.NDArray[np.int64] = rows[np.argsort(self.lengths[rows], kind="stable")]
        return sorted_rows

    def __iter__(self) -> Iterator[list[int]]:
        epoch, done = self._begun
        return iter(self.batches(self.epoch)[done if self.epoch == epoch else 0 :])

    def __len__(self) -> int:
        return -(-self.epoch_rows // self._together) * self._parts


def micro_batches(global_batch_size: int | None, batch_size: int, world_size: int) -> int:
    """Batches that each of the processes has in a step of ``global_batch_size`` rows, of at most ``batch_size``."""
    return 1 if global_batch_size is None else -(-global_batch_size // (batch_size * world_size))


class MixtureBatchSampler(LengthGroupedBatchSampler):
    """Training batches of several tasks, each with a number of rows an epoch of its own.

    A task's rows are gone through in passes, each a permutation drawn from ``(seed, task, pass)``. An epoch takes
    the next ``quotas[task]`` of them: a small task repeats, a large one is visited in turn, and no row comes again
    before its pass is over. Batches are cut from the rows of all tasks together, and are a pure function of
    ``(seed, epoch)`` too.

    Args:
        lengths: tokens of each row, (N,).
        tasks: the task of each row, (N,), counted from 0.
        quotas: rows of each task an epoch, at least 1.
        batch_size: as for :class:`LengthGroupedBatchSampler`, which also says the rest.
        seed: of the order.
        more: ``group_by_length``, ``rank``, ``world_size`` and ``global_batch_size``.
    """

    def __init__(
        self,
        lengths: npt.ArrayLike,
        tasks: npt.ArrayLike,
        quotas: Sequence[int],
        batch_size: int,
        seed: int,
        **more: Any,
    ) -> None:
        self.quotas = list(quotas)
        tasks = np.asarray(tasks)
        self.rows_of = [np.flatnonzero(tasks == task) for task in range(len(self.quotas))]
        super().__init__(lengths, batch_size, seed, **more)

    @property
    def epoch_rows(self) -> int:
        """The quotas' sum."""
        return sum(self.quotas)

    def order(self, epoch: int, random: np.random.Generator) -> npt.NDArray[np.int64]:
        """The tasks' next rows, shuffled."""
        return random.permutation(np.concatenate([self._next_rows(task, epoch) for task in range(len(self.quotas))]))

    def _next_rows(self, task: int, epoch: int) -> npt.NDArray[np.int64]:
        rows, quota = self.rows_of[task], self.quotas[task]
        first, start = divmod(epoch * quota, len(rows))
        passes = range(first, ((epoch + 1) * quota - 1) // len(rows) + 1)
        shuffled = [
            np.random.default_rng(derive_seed(self.seed, "mixture", task, number)).permutation(rows)
            for number in passes
        ]
        return np.concatenate(shuffled)[start : start + quota]


class EvaluationBatchSampler(Sampler[list[int]]):
    """Every row exactly once, over all ranks together, in an order that never changes.

    No row is repeated to make the ranks equal, since that would count it twice; a rank that has a batch less than the
    others gets a stand-in. Longest texts come first, so that a batch too big for the memory fails at once.
    """

    def __init__(
        self,
        lengths: npt.ArrayLike,
        batch_size: int,
        *,
        group_by_length: bool = True,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        lengths = np.asarray(lengths)
        order = np.argsort(-lengths, kind="stable") if group_by_length else np.arange(len(lengths))
        self.rows: list[int] = order[rank::world_size].tolist()
        self.batch_size = batch_size
        self._batches = -(-len(order[::world_size]) // batch_size)  # of rank 0, which has most
        self._stand_in = [stand_in(int(order[-1]))] if len(order) else []

    def __iter__(self) -> Iterator[list[int]]:
        for number in range(self._batches):
            yield self.batch(number) or self._stand_in

    def batch(self, number: int) -> list[int]:
        """The rows of this rank's batch ``number``; none, if it is a stand-in."""
        return self.rows[number * self.batch_size : (number + 1) * self.batch_size]

    def __len__(self) -> int:
        return self._batches


def stand_in(row: int) -> int:
    """``row`` as a sampler yields it where it does not count (and the row again, of what this gave)."""
    return ~row
