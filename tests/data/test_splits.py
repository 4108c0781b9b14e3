from __future__ import annotations

from collections import Counter

import pytest

from peftlab.data.base import DataSet, Splits, Texts
from peftlab.data.splits import assemble, drop_duplicates, hold_out, stratified_split, stratified_take
from peftlab.errors import DataError
from peftlab.objectives.base import objective

LABELS = [0] * 60 + [1] * 30 + [2] * 10  # ordered by label, as IMDb is


class Given(DataSet):
    def load(self) -> Splits:
        raise NotImplementedError


def texts(labels: list[int]) -> Texts:
    return Texts([f"text {i}" for i in range(len(labels))], labels)


def assembled(config: DataSet, labels: list[int] = LABELS, **given: Texts) -> Splits:
    arguments: dict[str, Texts | None] = {
        "train": texts(labels),
        "validation": None,
        "test": Texts(["a test", "b test"], [0, 1]),
    }
    return assemble(
        config,
        **{**arguments, **given},
        label_names=("a", "b", "c"),
        train_kind="official train",
        test_kind="official test",
        provenance={"source": "here"},
    )


@pytest.mark.parametrize(
    ("count", "shares"),
    [
        (10, {0: 6, 1: 3, 2: 1}),
        (20, {0: 12, 1: 6, 2: 2}),
        (7, {0: 4, 1: 2, 2: 1}),  # 4.2, 2.1, 0.7: the largest remainder gets the seventh
        (1, {0: 1}),
        (0, {}),
        (100, {0: 60, 1: 30, 2: 10}),
    ],
)
def test_shares_are_exact(count: int, shares: dict[int, int]) -> None:
    rows = stratified_take(LABELS, count, seed=3)
    assert Counter(LABELS[row] for row in rows) == shares
    assert rows == sorted(set(rows))


def test_the_seed_decides_and_nothing_else() -> None:
    assert stratified_take(LABELS, 20, seed=3) == stratified_take(LABELS, 20, seed=3)
    assert stratified_take(LABELS, 20, seed=3) != stratified_take(LABELS, 20, seed=4)
    # Pinned: a split of today must be the split of next year.
    assert stratified_take(LABELS, 5, seed=0) == [35, 40, 52, 71, 75]


def test_split_is_a_partition() -> None:
    kept, out = stratified_split(LABELS, 0.1, seed=0)
    assert sorted(kept + out) == list(range(100))
    assert Counter(LABELS[row] for row in out) == {0: 6, 1: 3, 2: 1}
    assert stratified_split([0, 0], 0.01, seed=0)[1] in ([0], [1])
    assert len(stratified_split([0, 0], 0.99, seed=0)[0]) == 1


def test_every_copy_of_a_repeated_text_is_dropped() -> None:
    given = Texts(["a", "b", " a\n", "c", "b", "A"], [0, 1, 1, 0, 1, 0])
    assert drop_duplicates(given) == (Texts(["c", "A"], [0, 0]), 4)


def test_repeated_texts_are_not_held_out_while_there_are_others() -> None:
    given = Texts(["same"] * 5 + list("abcde"), [0] * 10)
    for seed in range(20):
        assert (
            "same"
            not in hold_out(given, 0.5, seed, key="data.val_fraction", objective=objective("classification"))[1].texts
        )
    # None but repeated ones: held out all the same, and the record counts them.
    splits = assembled(Given(val_fraction=0.5), train=Texts(["same"] * 10, [0] * 10))
    assert splits.provenance["also_in_train"] == {"validation": 5, "test": 0}


def test_limits_are_stratified_and_said() -> None:
    splits = assembled(Given(limit_train=9, limit_test=1, limit_val=5))
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [9, 5, 1]
    assert Counter(splits.train.labels) == {0: 5, 1: 3, 2: 1}
    assert splits.train_kind == "official train, 9 of its 90 rows"
    assert splits.test_kind == "official test, 1 of its 2 rows"
    assert splits.provenance["rows"] == {"train": 9, "validation": 5, "test": 1}
    assert splits.provenance["rows_by_label"]["train"] == {"a": 5, "b": 3, "c": 1}


def test_limit_train_leaves_validation_as_it_is() -> None:
    assert assembled(Given(limit_train=20)).validation == assembled(Given()).validation
    assert assembled(Given(split_seed=1)).validation != assembled(Given()).validation


def test_no_row_is_in_two_splits() -> None:
    splits = assembled(Given())
    assert not set(splits.train.texts) & set(splits.validation.texts)
    assert len(splits.train) + len(splits.validation) == 100


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Given(limit_train=91), r"data\.limit_train=91 .*: 90\. Give at most 90"),
        (Given(limit_val=11), r"data\.limit_val=11 .*: 10\."),
        (Given(limit_test=3), r"data\.limit_test=3 .*: 2\."),
    ],
)
def test_a_limit_beyond_what_there_is(config: DataSet, message: str) -> None:
    with pytest.raises(DataError, match=message):
        assembled(config)


def test_one_row_cannot_be_split() -> None:
    with pytest.raises(DataError, match=r"data\.val_fraction=0\.1 needs at least 2 rows"):
        assembled(Given(), labels=[0])
