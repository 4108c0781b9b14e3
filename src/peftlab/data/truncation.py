"""Which tokens of a long text are kept."""

from __future__ import annotations

from collections.abc import Sequence

from peftlab.backbones.base import Tokenizer
from peftlab.errors import DataError
from peftlab.pairs import is_pair

_WHOLE = 1_000_000  # tokens; longer than any text


class HeadAndTail:
    """A tokenizer that keeps the first quarter of ``max_length`` from a text's start and the rest from its end.

    Reviews often sum up at the end: Sun et al. 2019 (arXiv:1905.05583, §5.3.1) found head and tail better than
    the head alone, with 128 of 512 tokens from the head. Special tokens at either end stay.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.pad_id = tokenizer.pad_id
        self.fingerprint = f"{tokenizer.fingerprint}/head-and-tail"

    def encode(self, texts: Sequence[str], max_length: int) -> list[list[int]]:
        """Token ids of each text, cut in the middle to ``max_length``."""
        self._tokenizer.encode([], max_length)  # refuses a length without room for the special tokens
        if any(map(is_pair, texts)):
            raise DataError(
                "data.truncation=head_and_tail is for single texts: the middle of a pair is where its second text "
                "begins. Set data.truncation=head; of a pair that is too long it cuts the longer text first."
            )
        head = max(1, max_length // 4)
        return [
            ids if len(ids) <= max_length else ids[:head] + ids[len(ids) - (max_length - head) :]
            for ids in self._tokenizer.encode(texts, _WHOLE)
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``; nothing shows where the middle was cut out."""
        return self._tokenizer.decode(ids)


def truncating(tokenizer: Tokenizer, how: str) -> Tokenizer:
    """``tokenizer`` cutting as ``data.truncation`` says: ``head`` is its own way."""
    return HeadAndTail(tokenizer) if how == "head_and_tail" else tokenizer
