"""Rows of language models that are longer than ``data.max_length``: cut, left out, or refused (``data.too_long``).

The length of a row is that of its tokens up to the last that is to be said, with nothing let go of: what is kept of a
longer one is told in :mod:`peftlab.data.target_rows` and :mod:`peftlab.data.choice_rows`. It takes a tokenizer to know
it, so rows are left out after they were shared out and limited, and no other row changes its side.

A test row is never left out: the test would be another one for each tokenizer and limit. It is cut, as by ``cut``, and
counted; one that then has no answer is an error.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from peftlab.backbones.base import Tokenizer
from peftlab.data.base import DataSet, Splits, Texts
from peftlab.data.in_words import TOO_LONG
from peftlab.data.labels import SHOWN
from peftlab.data.module import SPLITS, content_hash
from peftlab.data.splits import also_in_train
from peftlab.data.target_rows import RowEncoder
from peftlab.data.target_tokens import tokenize_targets
from peftlab.errors import DataError


def within_length(data: DataSet, splits: Splits, tokenizer: Tokenizer) -> Splits:
    """What is used of ``splits``: all, unless ``data`` leaves rows out that are too long.

    Args:
        data: says the limit, and what becomes of longer rows.
        splits: as it loads them.
        tokenizer: the backbone's.

    Raises:
        DataError: naming rows that are too long, at most 20, if these are refused; or if train or validation has none
            left.
    """
    rule = data.of_too_long()
    if rule == "cut":
        return splits
    lengths: dict[str, list[int]] = {}
    for split in SPLITS:
        encoder = data.row_encoder(tokenizer, training=split == "train")
        assert encoder is not None
        lengths[split] = whole_lengths(getattr(splits, split), encoder, split)
    if rule == "refuse":
        _refuse_longer(splits, lengths, data.max_length)
        return splits
    return _without_longer(data, splits, lengths)


def whole_lengths(texts: Texts, encoder: RowEncoder, split: str) -> list[int]:
    """Tokens of each text up to the last that is to be said, in the longest of its rows, nothing being cut."""
    rows = tokenize_targets(texts, encoder, sys.maxsize, split=split)
    found = [0] * len(texts)
    for row in range(len(rows)):
        said = np.flatnonzero(rows[row]["loss"])
        text = int(rows.text_of[row])
        found[text] = max(found[text], int(said[-1]) + 1 if len(said) else 0)
    return found


def _without_longer(data: DataSet, splits: Splits, lengths: Mapping[str, list[int]]) -> Splits:
    limit = data.max_length
    longer = {split: sum(length > limit for length in of) for split, of in lengths.items()}
    kept: dict[str, Texts] = {"test": splits.test}
    for split in ("train", "validation"):
        rows = [row for row, length in enumerate(lengths[split]) if length <= limit]
        if not rows:
            raise DataError(
                f"data.too_long=leave_out leaves no {split} row: all {longer[split]:,} have more than "
                f"data.max_length={limit} tokens, the shortest {min(lengths[split])}. Set data.max_length higher."
            )
        kept[split] = getattr(splits, split).take(rows)
    labels: dict[str, list[Any]] = {split: kept[split].labels for split in SPLITS}
    facts = {
        "rows": {split: len(kept[split]) for split in SPLITS},
        "also_in_train": also_in_train(kept),
        **data.objective_of().label_facts(labels, splits.label_names),
        TOO_LONG: longer,
    }
    return replace(
        splits,
        train=kept["train"],
        validation=kept["validation"],
        train_kind=_kind(splits.train_kind, longer["train"], limit),
        provenance=splits.provenance | facts,
        hash_as_loaded=content_hash(splits),
    )


def _kind(kind: str, longer: int, limit: int) -> str:
    rows = "row" if longer == 1 else "rows"
    return f"{kind}, without {longer:,} {rows} of more than {limit} tokens" if longer else kind


def _refuse_longer(splits: Splits, lengths: Mapping[str, list[int]], limit: int) -> None:
    found = [
        (getattr(splits, split).place(row, split), length)
        for split, of in lengths.items()
        for row, length in enumerate(of)
        if length > limit
    ]
    if not found:
        return
    lines = [f"{place}: {length:,} tokens, and data.max_length={limit}." for place, length in found[:SHOWN]]
    if len(found) > SHOWN:
        lines.append(f"… and {len(found) - SHOWN:,} more rows that are too long.")
    lines.append(
        f"data.too_long=refuse allows none. Set data.max_length to {max(length for _, length in found)}, or "
        "data.too_long to leave_out (of training and validation) or cut."
    )
    raise DataError("\n".join(lines))
