"""A text longer than a model reads at once, cut into windows: each token is scored once. Imports no torch.

    the first window reads ``size`` ids and scores all but the first
    each next one scores the ``stride`` ids behind, with as much before them as fits

So every token has at least ``size - stride`` tokens before it. With ``stride = size - 1`` these are the windows of
lm-evaluation-harness's ``loglikelihood_rolling`` with ``max_length = size - 1``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from peftlab.errors import DataError
from peftlab.language.options import Continuation


class Fit(NamedTuple):
    """How well a model foretells texts."""

    nats: float
    """-log p of all tokens that are scored."""
    tokens: int
    """Those tokens."""
    utf8_bytes: int
    """Of the texts as UTF-8."""

    @property
    def perplexity(self) -> float:
        """exp(nats / tokens): over all tokens of all texts alike."""
        return math.exp(self.nats / self.tokens) if self.tokens else math.nan

    @property
    def bits_per_byte(self) -> float:
        """Of the text, so that models with different tokenizers compare."""
        return self.nats / math.log(2) / self.utf8_bytes if self.utf8_bytes else math.nan


def windows(ids: Sequence[int], size: int, stride: int) -> Iterator[Continuation]:
    """``ids``, whose first is context only, as windows of at most ``size`` ids.

    Raises:
        DataError: unless 1 ≤ ``stride`` < ``size``.
    """
    if not 1 <= stride < size:
        raise DataError(
            f"a stride of {stride} tokens does not fit windows of {size}: it must be at least 1 and at most "
            f"{size - 1}, since the first token of a window is only read."
        )
    done = 1
    while done < len(ids):
        stop = min(done + (size - 1 if done == 1 else stride), len(ids))
        yield Continuation(tuple(ids[max(0, stop - size) : done]), tuple(ids[done:stop]))
        done = stop


def fit(scored: Iterable[tuple[float, int]], texts: Iterable[str]) -> Fit:
    """The fit of (log-likelihood, tokens) of all windows of ``texts``."""
    pairs = list(scored)
    return Fit(
        -math.fsum(logp for logp, _ in pairs),
        sum(tokens for _, tokens in pairs),
        sum(len(text.encode("utf-8", "replace")) for text in texts),
    )
