"""Which text of a pair a token belongs to, as the tokenizer itself numbers them.

Special tokens stand where the tokenizer's template puts them and nowhere else: :mod:`peftlab.backbones.tokenizers`
reads text as text. So a row's segments follow from its special tokens, from how many it has and how many stand before a
token. What they are is learned from the tokenizer, from one text and from one pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class Segments:
    """Segment of each token, by the special tokens of its row."""

    special: tuple[int, ...]
    """Ids of the tokens that templates put in."""
    of_texts: tuple[tuple[int, ...], ...]
    """``[n][k]``: in a row with n special tokens, of a text's token behind k of them."""
    of_specials: tuple[tuple[int, ...], ...]
    """``[n][k]``: of the k-th special token itself, counted from 1."""

    @classmethod
    def learned(cls, rows: Sequence[tuple[Sequence[int], Sequence[int]]], special: Sequence[int]) -> Segments | None:
        """From rows of (ids, segments), a kind of row each; None if all segments are 0.

        A kind that is not among them is numbered as the first.
        """
        most = max(sum(token in special for token in ids) for ids, _ in rows)
        texts: list[list[int]] = [[] for _ in range(most + 1)]
        specials: list[list[int]] = [[] for _ in range(most + 1)]
        for ids, segments in rows:
            of_text, of_special, behind = [0] * (most + 1), [0] * (most + 1), 0
            for token, segment in zip(ids, segments, strict=True):
                if token in special:
                    behind += 1
                    of_special[behind] = segment
                    of_text[behind:] = [segment] * (most + 1 - behind)  # until a text says otherwise
                else:
                    of_text[behind] = segment
            texts[behind] = texts[behind] or of_text
            specials[behind] = specials[behind] or of_special
        first = next(row for row in texts if row), next(row for row in specials if row)
        if not any(map(any, texts + specials)):
            return None
        return cls(
            tuple(special),
            tuple(tuple(row or first[0]) for row in texts),
            tuple(tuple(row or first[1]) for row in specials),
        )

    @property
    def count(self) -> int:
        """Segments that a model must know."""
        return 1 + max(segment for table in (self.of_texts, self.of_specials) for row in table for segment in row)

    def of(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Segments (B, T) int64 of ids (B, T) and their mask; 0 on padding."""
        most = len(self.of_texts) - 1
        # tensors without memory (peftlab estimate) have tables of their kind, and those are nobody else's
        tables = _tables if type(input_ids) is Tensor else _tables.__wrapped__
        text, special, tokens = tables(self, input_ids.device)
        is_special = torch.isin(input_ids, tokens) & (attention_mask > 0)
        behind = is_special.long().cumsum(dim=1).clamp(max=most)  # (B, T)
        kind = behind[:, -1:].expand_as(behind)
        found = torch.where(is_special, special[kind, behind], text[kind, behind])
        return torch.where(attention_mask > 0, found, 0)


@lru_cache(maxsize=64)
def _tables(segments: Segments, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """``of_texts``, ``of_specials`` and ``special`` on ``device``, to carry them there but once."""
    text, special, tokens = segments.of_texts, segments.of_specials, segments.special
    with torch.inference_mode(False):  # training may take what evaluation has made
        tables = [torch.tensor(table, device=device) for table in (text, special, tokens)]
    return tables[0], tables[1], tables[2]
