"""Log-likelihoods of token sequences, in batches.

    log p(target | context) = sum over t of log softmax(z_t)[target_t]       z_t (V): what the model says before it

Rows are padded on the right, where a causal model cannot see; the result of a row does not depend on its batch. Sums
are made in float32 of logits in float32, over the rows of the model's vocabulary as ``transformers`` has it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from peftlab.language.options import Continuation

Logits = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Ids and mask, (B, T) int64 each, and the N places that are asked for, (B, T) bool, to the logits there, (N, V)."""


class Likelihood(NamedTuple):
    """Of a continuation."""

    logp: float
    """Its log-likelihood, summed over its tokens."""
    tokens: int
    greedy: bool
    """Whether each of its tokens is the likeliest."""
    cut: int = 0
    """Tokens of its context that the model did not read, because there was no room for them."""


def token_log_likelihoods(logits: Tensor, ids: Tensor) -> Tensor:
    """log p of each of ``ids`` (…) under ``logits`` (…, V), in float32."""
    scores = logits.float()
    return scores.gather(-1, ids.unsqueeze(-1)).squeeze(-1) - scores.logsumexp(dim=-1)


@torch.inference_mode()
def log_likelihoods(
    logits: Logits,
    rows: Sequence[Continuation],
    *,
    batch_size: int,
    pad_id: int = 0,
    limit: int | None = None,
    device: torch.device | str = "cpu",
) -> list[Likelihood]:
    """What the model says of each of ``rows``, in their order.

    Args:
        logits: the model; in eval mode.
        rows: contexts and targets, neither of them empty.
        batch_size: rows that are computed together, those of like length.
        pad_id: any id that the model embeds.
        limit: ids that the model has positions for. Of a longer row the end is read: at least one id of context for
            the first target. (The last target is never read, so a row may have ``limit + 1`` ids.)
        device: where the model is.
    """
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
    found: dict[int, Likelihood] = {}
    for start in range(0, len(order), batch_size):
        numbers = order[start : start + batch_size]
        found |= zip(numbers, _batch(logits, [rows[row] for row in numbers], pad_id, limit, device), strict=True)
    return [found[row] for row in range(len(rows))]


def _batch(
    logits: Logits, rows: Sequence[Continuation], pad_id: int, limit: int | None, device: torch.device | str
) -> list[Likelihood]:
    read = [(*row.context, *row.target)[:-1] for row in rows]
    cut = [0 if limit is None else max(0, len(ids) - limit) for ids in read]
    for row, dropped in zip(rows, cut, strict=True):
        assert row.target, "whoever makes a continuation checks that it has a target"
        assert dropped < len(row.context), "a target longer than the model reads is cut by whoever makes it"
    read = [ids[dropped:] for ids, dropped in zip(read, cut, strict=True)]
    width = max(map(len, read))
    ids = torch.tensor([[*own, *[pad_id] * (width - len(own))] for own in read], device=device)  # (B, T)
    mask = torch.tensor([[1] * len(own) + [0] * (width - len(own)) for own in read], device=device)
    ends = torch.tensor([[len(own)] for own in read], device=device)  # (B, 1)
    counts = torch.tensor([[len(row.target)] for row in rows], device=device)
    places = torch.arange(width, device=device)[None]
    said = logits(ids, mask, (places >= ends - counts) & (places < ends))  # (N, V), a row behind the other
    targets = torch.tensor([token for row in rows for token in row.target], device=device)  # (N,)
    scores = token_log_likelihoods(said, targets)
    best = said.argmax(dim=-1) == targets
    found, start = [], 0
    for row, dropped in zip(rows, cut, strict=True):
        stop = start + len(row.target)
        found.append(Likelihood(float(scores[start:stop].sum()), stop - start, bool(best[start:stop].all()), dropped))
        start = stop
    return found
