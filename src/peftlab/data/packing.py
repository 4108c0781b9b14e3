"""Several texts of a batch in one row, so that little is padded.

A batch has the texts that it has without packing, and a step is the same step: they only stand behind each other. No
text is split, and no row is longer than ``data.max_length``. Positions count from 0 in every text, by which models of
``transformers`` keep them apart (:mod:`peftlab.backbones.isolation` asks whether this one does), and the first token of
a text is no target of the one before it.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

TRIED = 8
"""Numbers of rows beyond the fewest: what a batch of hundreds of texts would gain from more is not worth its time."""


def packed(rows: Sequence[Mapping[str, Any]], at_most: int) -> list[dict[str, Any]]:
    """``rows`` with ``input_ids`` and ``loss`` in rows of like lengths, of at most ``at_most`` tokens.

    Each has ``positions`` (T,), ``starts``, the places of first tokens but its own first, and ``texts``, their number.
    """
    lengths = [len(row["input_ids"]) for row in rows]
    return [_joined([rows[number] for number in part]) for part in shared_out(lengths, at_most)]


def shared_out(lengths: Sequence[int], at_most: int) -> list[list[int]]:
    """Numbers of texts by row: as many rows as make their number times the longest one least, the fewest of those.

    For each number of rows the longest text goes first, each into the shortest row (Graham 1969). Beside the fewest
    rows that hold all texts so, :data:`TRIED` more are tried.
    """
    order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    best: list[list[int]] | None = None
    fewest, least = -(-sum(lengths) // at_most), at_most * (len(lengths) + 1)
    last = len(lengths)
    for count in range(max(fewest, 1), len(lengths) + 1):
        if count > last or count * lengths[order[0]] >= least:
            break  # more rows have more places than the best, however the texts are shared out
        rows: list[list[int]] = [[] for _ in range(count)]
        filled = [(0, number) for number in range(count)]
        for number in order:
            shortest, row = heapq.heappop(filled)
            rows[row].append(number)
            heapq.heappush(filled, (shortest + lengths[number], row))
        longest = max(filled)[0]
        if longest <= at_most and best is None:
            last = count + TRIED
        if longest <= at_most and count * longest < least:
            best, least = rows, count * longest
    assert best is not None, "a text is longer than a row may be"
    return [sorted(row) for row in best if row]


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
