"""Several texts of a batch in one row, so that little is padded.

A batch has the texts that it has without packing, and a step is the same step: they only stand behind each other. No
text is split, and no row is longer than ``data.max_length``. Positions count from 0 in every text, by which models of
``transformers`` keep them apart (:mod:`peftlab.backbones.isolation` asks whether this one does), and the first token of
a text is no target of the one before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def packed(rows: Sequence[Mapping[str, Any]], at_most: int) -> list[dict[str, Any]]:
    """``rows`` with ``input_ids`` and ``loss`` in as few rows of ``at_most`` tokens as can be found, of like lengths.

    Each has ``positions`` (T,), ``starts``, the places of first tokens but its own first, and ``texts``, their number.
    """
    lengths = [len(row["input_ids"]) for row in rows]
    return [_joined([rows[number] for number in part]) for part in shared_out(lengths, at_most)]


def shared_out(lengths: Sequence[int], at_most: int) -> list[list[int]]:
    """Numbers of texts by row: the longest first, each into the shortest row; rows are as few as take all of them."""
    order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    fewest = -(-sum(lengths) // at_most)
    for count in range(max(fewest, 1), len(lengths) + 1):
        rows: list[list[int]] = [[] for _ in range(count)]
        filled = [0] * count
        for number in order:
            shortest = min(range(count), key=filled.__getitem__)
            if filled[shortest] + lengths[number] > at_most:
                break
            rows[shortest].append(number)
            filled[shortest] += lengths[number]
        else:
            return [sorted(row) for row in rows if row]
    raise AssertionError("a text is longer than a row may be")


def _joined(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    lengths = [len(row["input_ids"]) for row in rows]
    return {
        "input_ids": np.concatenate([row["input_ids"] for row in rows]),
        "loss": np.concatenate([row["loss"] for row in rows]),
        "positions": np.concatenate([np.arange(length) for length in lengths]),
        "starts": np.cumsum(lengths)[:-1].tolist(),
        "texts": sum(row["texts"] for row in rows),
        "label": None,
    }
