from __future__ import annotations

import pickle
from collections.abc import Iterable
from itertools import chain

import numpy as np
import pytest
import torch

from peftlab.data.batching import EvaluationBatchSampler, LengthGroupedBatchSampler, collate, stand_in
from peftlab.objectives.base import objective

SKEWED = np.random.default_rng(0).lognormal(4, 1, size=1003).astype(int) + 2


def waste(batches: list[list[int]]) -> float:
    """Share of the positions that is padding."""
    padded = sum(len(batch) * max(SKEWED[batch]) for batch in batches)
    return float(1 - sum(SKEWED[batch].sum() for batch in batches) / padded)


def test_collate_pads_on_the_right() -> None:
    fn = pickle.loads(pickle.dumps(collate(pad_id=9, learned=objective("classification"))))
    batch = fn(
        [
            {"input_ids": np.array([1, 2, 3], dtype=np.int32), "label": 1},
            {"input_ids": np.array([4], dtype=np.int32), "label": 0},
        ]
    )
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [1, 0]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


@pytest.mark.parametrize(("lengths", "width"), [([3, 1], 4), ([4], 4), ([5], 8), ([9, 2], 10), ([10], 10), ([11], 11)])
def test_collate_pads_to_a_multiple_but_not_beyond_the_longest_text(lengths: list[int], width: int) -> None:
    fn = collate(9, objective("classification"), multiple_of=4, at_most=10)
    batch = fn([{"input_ids": np.ones(length, dtype=np.int32), "label": 0} for length in lengths])
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (len(lengths), width)
    assert batch["attention_mask"].sum(dim=1).tolist() == lengths
    assert (batch["input_ids"] == 9).sum() == len(lengths) * width - sum(lengths)


@pytest.mark.parametrize("group_by_length", [True, False])
@pytest.mark.parametrize(("rows", "batch_size"), [(1003, 8), (1000, 8), (5, 8), (1, 1), (801, 2)])
def test_every_row_once_an_epoch(rows: int, batch_size: int, group_by_length: bool) -> None:
    sampler = LengthGroupedBatchSampler(SKEWED[:rows], batch_size, 7, group_by_length=group_by_length)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert sorted(chain(*batches)) == list(range(rows))
        assert len(batches) == len(sampler) == -(-rows // batch_size)
        assert sorted({len(batch) for batch in batches}, reverse=True)[0] <= batch_size


def test_order_is_a_function_of_seed_and_epoch() -> None:
    torch.manual_seed(1)
    fresh, worn = (LengthGroupedBatchSampler(SKEWED, 8, seed=7) for _ in range(2))
    for epoch in (0, 1, 5):  # a history that `fresh` does not have
        worn.set_epoch(epoch)
        list(worn)
    torch.manual_seed(2)
    fresh.set_epoch(3)
    worn.set_epoch(3)
    assert list(fresh) == list(worn) == fresh.batches(3)
    assert fresh.batches(3) != fresh.batches(4)
    assert fresh.batches(3) != LengthGroupedBatchSampler(SKEWED, 8, seed=8).batches(3)


def test_grouping_saves_padding_and_keeps_the_order_random() -> None:
    grouped = LengthGroupedBatchSampler(SKEWED, 8, 7)
    plain = LengthGroupedBatchSampler(SKEWED, 8, 7, group_by_length=False)
    assert waste(grouped.batches(0)) < 0.15 < 0.5 < waste(plain.batches(0))
    # The length of a batch says nothing of the next one's: no drift from short to long.
    drifts = []
    for epoch in range(50):
        lengths = np.log([SKEWED[batch].mean() for batch in grouped.batches(epoch)])
        drifts.append(np.corrcoef(lengths[:-1], lengths[1:])[0, 1])
    assert abs(np.mean(drifts)) < 0.05


@pytest.mark.parametrize("group_by_length", [True, False])
@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize("rows", [1003, 1000, 960, 97, 4])
def test_ranks_share_the_rows(rows: int, world_size: int, group_by_length: bool) -> None:
    ranks = [
        LengthGroupedBatchSampler(
            SKEWED[:rows], 8, 7, group_by_length=group_by_length, rank=rank, world_size=world_size
        )
        for rank in range(world_size)
    ]
    batches = [sampler.batches(2) for sampler in ranks]
    assert {len(part) for part in batches} == {len(ranks[0])}
    assert sorted(counted(chain(*batches))) == list(range(rows))
    one = LengthGroupedBatchSampler(SKEWED[:rows], 8 * world_size, 7, group_by_length=group_by_length).batches(2)
    assert len(one) == len(ranks[0])
    for batch, together, size in zip(one, zip(*batches, strict=True), ranks[0].sizes(2), strict=True):
        sizes = [len(counted([part])) for part in together]
        assert max(sizes) - min(sizes) <= 1
        assert sum(sizes) == size
        assert min(map(len, together)) >= 1, "a rank without rows computes beside the others"
        if not group_by_length:
            assert sorted(counted(together)) == sorted(batch), "a step has the same rows, whatever the number of ranks"


def counted(batches: Iterable[list[int]]) -> list[int]:
    """The rows that do not stand in for others."""
    return [row for batch in batches for row in batch if row >= 0]


def test_stand_ins_are_rows() -> None:
    (batch,) = LengthGroupedBatchSampler([1, 2, 3], 8, 7, rank=3, world_size=4).batches(0)
    assert len(batch) == 1
    assert stand_in(batch[0]) in (0, 1, 2)
    assert stand_in(stand_in(2)) == 2


@pytest.mark.parametrize("group_by_length", [True, False])
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("rows", [1003, 64, 49, 2])
def test_evaluation_sees_every_row_exactly_once(rows: int, world_size: int, group_by_length: bool) -> None:
    samplers = [
        EvaluationBatchSampler(SKEWED[:rows], 16, group_by_length=group_by_length, rank=r, world_size=world_size)
        for r in range(world_size)
    ]
    assert sorted(counted(chain(*samplers))) == list(range(rows))
    for sampler in samplers:
        assert len(list(sampler)) == len(sampler) == len(samplers[0]), "no rank waits for another"
        assert list(sampler) == list(sampler)


def test_evaluation_order() -> None:
    assert list(EvaluationBatchSampler([3, 9, 5, 9], 2)) == [[1, 3], [2, 0]]
    assert list(EvaluationBatchSampler([3, 9, 5, 9], 2, group_by_length=False)) == [[0, 1], [2, 3]]


@pytest.mark.parametrize("group_by_length", [True, False])
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize(("rows", "together", "batch_size"), [(1003, 32, 5), (97, 12, 12), (65, 64, 7), (5, 7, 1)])
def test_a_global_batch_is_cut_alike_for_any_number_of_ranks(
    rows: int, together: int, batch_size: int, world_size: int, group_by_length: bool
) -> None:
    """Each step has the rows that one process has which takes them at once, in as few batches as will do."""
    how = {"group_by_length": group_by_length, "global_batch_size": together}
    ranks = [
        LengthGroupedBatchSampler(SKEWED[:rows], batch_size, 7, rank=rank, world_size=world_size, **how)
        for rank in range(world_size)
    ]
    whole = LengthGroupedBatchSampler(SKEWED[:rows], together, 7, group_by_length=group_by_length).batches(2)
    batches = [sampler.batches(2) for sampler in ranks]
    parts = -(-len(batches[0]) // len(whole))
    assert parts == min(n for n in range(1, together + 1) if n * world_size * batch_size >= together)
    assert {len(part) for part in batches} == {len(ranks[0])} == {len(whole) * parts}
    for number, step in enumerate(whole):
        mine = slice(number * parts, (number + 1) * parts)
        cut = [part[mine] for part in batches]
        assert sorted(counted(chain(*cut))) == sorted(step)
        sizes = [len(counted([batch])) for one in cut for batch in one]
        assert max(sizes) <= batch_size
        assert max(sizes) - min(sizes) <= 1
        assert ranks[0].sizes(2)[mine] == [sum(len(counted([one[i]])) for one in cut) for i in range(parts)]
