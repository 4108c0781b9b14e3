"""Stratified splits, decided by a seed and nothing else.

Every draw sorts rows by a key from :meth:`random.Random.random`, whose sequence Python promises to keep
between versions (numpy promises nothing of the kind for its permutations), so a split of today is the
split of next year.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from peftlab.data.base import DataSet, Splits, Texts
from peftlab.errors import DataError, listed
from peftlab.objectives.base import Objective
from peftlab.seeding import derive_seed

logger = logging.getLogger(__name__)


def stratified_take(labels: Sequence[int], count: int, seed: int, last_resort: Collection[int] = ()) -> list[int]:
    """Exactly ``count`` rows, ascending, with each label's share as near to its share of all as can be.

    The rows of a label follow the largest-remainder rule; ties go to the smaller label. Rows in
    ``last_resort`` are taken only when their label has no others left.
    """
    assert 0 <= count <= len(labels)
    draw = random.Random(seed)
    key = [draw.random() for _ in labels]
    avoided = set(last_resort)
    quota = largest_remainder(Counter(labels), count)
    rows_of: dict[int, list[int]] = {label: [] for label in quota}
    for row, label in enumerate(labels):
        rows_of[label].append(row)
    taken: list[int] = []
    for label, rows in rows_of.items():
        rows.sort(key=lambda row: (row in avoided, key[row]))
        taken += rows[: quota[label]]
    return sorted(taken)


def largest_remainder(sizes: Mapping[int, int], count: int) -> dict[int, int]:
    """``count`` places shared out in proportion to ``sizes``; integers only, so nothing rounds astray."""
    total = sum(sizes.values())
    quota = {label: count * size // total for label, size in sizes.items()}
    by_remainder = sorted(sizes, key=lambda label: (-(count * sizes[label] % total), label))
    for label in by_remainder[: count - sum(quota.values())]:
        quota[label] += 1
    return quota


def stratified_split(
    labels: Sequence[int], fraction: float, seed: int, last_resort: Collection[int] = ()
) -> tuple[list[int], list[int]]:
    """Rows kept and rows held out, both ascending; ``fraction`` of the rows (rounded) is held out.

    At least one row stays on each side.
    """
    assert len(labels) >= 2
    count = min(max(round(fraction * len(labels)), 1), len(labels) - 1)
    held_out = stratified_take(labels, count, seed, last_resort)
    out = set(held_out)
    return [row for row in range(len(labels)) if row not in out], held_out


def repeated_rows(texts: Sequence[str]) -> list[int]:
    """Rows whose text, surrounding whitespace aside, occurs more than once."""
    counts = Counter(text.strip() for text in texts)
    return [row for row, text in enumerate(texts) if counts[text.strip()] > 1]


def drop_duplicates(texts: Texts) -> tuple[Texts, int]:
    """The rows whose text occurs once, and how many rows were dropped (every copy is)."""
    repeated = set(repeated_rows(texts.texts))
    return texts.take([row for row in range(len(texts)) if row not in repeated]), len(repeated)


def require_all_learned(objective: Objective, train: Texts, names: Sequence[str], place: object) -> None:
    """Raise DataError, naming ``place``, if no row of ``train`` has one of the labels ``names``."""
    if absent := objective.not_learned(train.labels, names):
        otherwise = "Add such rows, or leave the label out of data.labels."
        raise DataError(
            f"{place}: no row left for training has the label {listed(absent)}. "
            f"{_what_to_do(objective, absent, names, otherwise)}"
        )


def _what_to_do(objective: Objective, lost: Sequence[str], names: Sequence[str], otherwise: str) -> str:
    """About labels without training rows: more rows help none that is another one's misspelling."""
    alike = objective.same_but_for_case(lost, names)
    said = listed(f"{name} for {other}" for name, other in alike.items())
    mend = (
        f"Labels that differ in upper and lower case alone are different ones, and there is {said}: write them alike."
    )
    return " ".join([*([mend] if alike else []), *([otherwise] if len(alike) < len(lost) else [])])


def hold_out(texts: Texts, fraction: float, seed: int, *, key: str, objective: Objective) -> tuple[Texts, Texts]:
    """``texts`` without the held-out rows, and the held-out rows.

    A text that occurs more than once stays on the first side as long as others are left, so that what
    is measured on the second was not trained on.

    Args:
        key: The config field behind ``fraction``, for the message.
        objective: says what keeps its share on both sides.
    """
    if len(texts) < 2:
        raise DataError(
            f"{key}={fraction} needs at least 2 rows to leave one on each side, "
            f"but there {'is only 1' if len(texts) else 'are none'}. Give more rows."
        )
    kept, held_out = stratified_split(objective.strata(texts.labels), fraction, seed, repeated_rows(texts.texts))
    return texts.take(kept), texts.take(held_out)


def test_or_hold_out(
    config: DataSet, fraction: float, texts: Mapping[str, Texts], named: str
) -> tuple[Texts, Texts, str]:
    """Train and test, and what the test is where there is none: then it is held out of train.

    Args:
        config: says seed and objective.
        fraction: its ``holdout_fraction``.
        texts: ``train``, and perhaps ``test``.
        named: what train is called.
    """
    if "test" in texts:
        return texts["train"], texts["test"], ""
    seed, key = derive_seed(config.split_seed, "hold-out"), "data.holdout_fraction"
    train, test = hold_out(texts["train"], fraction, seed, key=key, objective=config.objective_of())
    return train, test, f"hold-out of {named}"


def assemble(
    config: DataSet,
    *,
    train: Texts,
    validation: Texts | None,
    test: Texts,
    label_names: tuple[str, ...],
    train_kind: str,
    test_kind: str,
    provenance: dict[str, Any],
) -> Splits:
    """The splits a run uses: validation held out of train where there is none, then the limits.

    The limits come last, so a smaller ``limit_train`` keeps the same validation and test rows.
    """
    objective = config.objective_of()
    if validation is None:
        seed = derive_seed(config.split_seed, "validation")
        train, validation = hold_out(train, config.val_fraction, seed, key="data.val_fraction", objective=objective)
        provenance = provenance | {"validation": f"{config.val_fraction:g} of the train rows, held out"}
    available = {"train": len(train), "validation": len(validation), "test": len(test)}
    train = _limited(train, config.limit_train, "limit_train", config.split_seed, objective)
    validation = _limited(validation, config.limit_val, "limit_val", config.split_seed, objective)
    test = _limited(test, config.limit_test, "limit_test", config.split_seed, objective)
    splits = {"train": train, "validation": validation, "test": test}
    if lost := objective.not_learned(train.labels, label_names):
        logger.warning(
            "No training row is left with the label %s: the model cannot learn it. %s",
            listed(lost),
            _what_to_do(objective, lost, label_names, "Give more rows, or hold fewer out."),
        )
        provenance = provenance | {"labels_without_training_rows": lost}
    for name, texts in splits.items():
        if not len(texts):
            raise DataError(f"The {name} split has no rows. Give a file with at least one labelled text.")
    rows = {name: len(texts) for name, texts in splits.items()}
    return Splits(
        train=train,
        validation=validation,
        test=test,
        label_names=label_names,
        train_kind=_kind(train_kind, rows["train"], available["train"]),
        test_kind=_kind(test_kind, rows["test"], available["test"]),
        provenance=provenance
        | {
            "rows": rows,
            "rows_available": available,
            **objective.label_facts({name: texts.labels for name, texts in splits.items()}, label_names),
            "split_seed": config.split_seed,
            "also_in_train": _said_of_train(splits),
        },
    )


def _limited(texts: Texts, limit: int | None, key: str, split_seed: int, objective: Objective) -> Texts:
    if limit is None:
        return texts
    if limit > len(texts):
        raise DataError(
            f"data.{key}={limit} asks for more rows than there are: {len(texts)}. "
            f"Give at most {len(texts)}, or leave data.{key}=null for all of them."
        )
    return texts.take(stratified_take(objective.strata(texts.labels), limit, derive_seed(split_seed, key)))


def _kind(kind: str, used: int, available: int) -> str:
    return kind if used == available else f"{kind}, {used:,} of its {available:,} rows"


def also_in_train(splits: Mapping[str, Texts]) -> dict[str, int]:
    """How many validation and test rows carry a text that is a training text too."""
    trained_on = {text.strip() for text in splits["train"].texts}
    return {name: sum(text.strip() in trained_on for text in splits[name].texts) for name in ("validation", "test")}


def _said_of_train(splits: Mapping[str, Texts]) -> dict[str, int]:
    shared = also_in_train(splits)
    for name, count in shared.items():
        if count:
            logger.warning(
                "%s of the %s %s rows repeat a training text word for word.",
                f"{count:,}",
                f"{len(splits[name]):,}",
                name,
            )
    return shared
