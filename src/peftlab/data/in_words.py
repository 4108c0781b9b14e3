"""What was read, as it is said before training and by ``peftlab check``. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator

from peftlab.data.base import DataSet, Splits

TOO_LONG = "too_long"
"""Where a record's ``data`` says how many rows of each split are too long; of train and validation, left out."""
NOT_READ = "not read: it, or a part of it, is in no files here that peftlab reads itself, and a check fetches nothing"


def rows_in_words(data: DataSet, splits: Splits) -> Iterator[str]:
    """A line of each split: what it is, how many rows it has, and of train its labels."""
    labels = data.what_is_learned().labels_in_words(splits.train.labels, splits.label_names)
    yield f"{splits.train_kind}: {len(splits.train):,} rows ({labels})"
    if splits.tasks:
        shares = ", ".join(f"{task} {count:,}" for task, count in splits.provenance["rows_an_epoch"].items())
        yield f"rows an epoch: {shares}"
    yield f"validation: {len(splits.validation):,} rows"
    yield f"test, {splits.test_kind}: {len(splits.test):,} rows"


def found_in_words(data: DataSet, splits: Splits | None) -> Iterator[str]:
    """The same of :meth:`DataSet.load_here`; or that nothing was read, and why."""
    if splits is None:
        yield NOT_READ
        return
    yield from rows_in_words(data, splits)


def rows_in_brief(splits: Splits) -> str:
    """What the training and test rows are, and how many there are."""
    rows = f"{len(splits.train):,} training, {len(splits.validation):,} validation and {len(splits.test):,} test rows"
    return f"{rows} ({splits.train_kind}; {splits.test_kind})"
