"""Rows of a language model: token ids, and which of them are to be said.

    dialogue   begin · asked · said · end · asked · said · end …        under loss: what is said, and each end
    text       begin · text, in windows                                 under loss: each token once

Prompt and response are tokenised apart, as generation will read the one and write the other; what a template writes
around them is told in :mod:`peftlab.backbones.rendering`. An answer ends with the special token that the template
writes behind it, or else with the tokenizer's end-of-text token. The begin token stands once, whoever puts it there:
the tokenizer or the template; where neither does there is none. A mask belongs to places, not to ids: where padding
and end are one token, the end is learned and the padding is not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from peftlab.backbones.base import Tokenizer
from peftlab.backbones.rendering import LanguageTokenizer, Renderer
from peftlab.backbones.tokenizers import ByteTokenizer, HFTokenizer
from peftlab.dialogues import Turn, turns_of
from peftlab.errors import BackboneError, DataError

LossOn = Literal["response", "all", "last_turn"]


@dataclass(frozen=True)
class TokenRow:
    """Tokens that stand in one row of a batch, and which are under loss."""

    ids: list[int]
    loss: list[bool]
    """Of each token. The first of a row is never a target, whatever stands here: nothing is in front of it."""
    cut: bool = False
    """Whether what is under loss was cut at the limit of length, its end with it."""

    def __post_init__(self) -> None:
        assert len(self.ids) == len(self.loss)


class RowError(DataError):
    """A row that cannot be made into tokens; says why, without its place."""


class RowEncoder(Protocol):
    """Makes token rows of the texts of a split."""

    fingerprint: str
    """Hash of everything that decides the rows, but for text and length."""

    def encode(self, text: str, max_length: int) -> list[TokenRow]:
        """The rows of one text, each of at most ``max_length`` tokens.

        Raises:
            RowError: if it has none that can be learned from.
        """
        ...


class DialogueRows:
    """A row a dialogue.

    Args:
        tokenizer: the backbone's.
        template: a chat template, in Jinja.
        loss_on: what is under loss: every answer, every token, or the last answer alone. The answers before the last
            are then a part of what is asked, and a dialogue that is too long loses its first exchanges.
    """

    def __init__(self, tokenizer: LanguageTokenizer, template: str, loss_on: LossOn) -> None:
        self.tokenizer = tokenizer
        self.renderer = Renderer(tokenizer, template)
        self.loss_on = loss_on
        self._begin = list(tokenizer.begin)
        self.fingerprint = _hash("dialogues 1", tokenizer.fingerprint, template, loss_on)

    def asked(self, turns: Sequence[Turn]) -> list[int]:
        """What a model is given to say the next turn: the beginning of the row that it was trained with."""
        return self._begun(self.renderer.ids(self.renderer.asked(turns)))

    def stop_ids(self) -> list[int]:
        """The tokens that end an answer: that under loss, and the tokenizer's end-of-text token."""
        [answer] = self.renderer.answers([Turn("user", "a"), Turn("assistant", "b")])
        ends = {self._said(answer.said)[-1], self.tokenizer.end_id}
        return sorted(token for token in ends if token is not None)

    def encode(self, text: str, max_length: int) -> list[TokenRow]:
        """See :class:`RowEncoder`."""
        turns = turns_of(text)
        if self.loss_on == "last_turn":
            return [self._last_turn(turns, max_length)]
        ids: list[int] = []
        loss: list[bool] = []
        try:
            answers = self.renderer.answers(turns)
        except ValueError as error:
            if isinstance(error, DataError):
                raise RowError(str(error)) from error
            raise RowError(
                f"{error}. Set data.answers=apart, which makes a row of each answer, or data.loss_on=last_turn"
            ) from error
        done = ""
        for answer in answers:
            piece = self.renderer.ids(answer.asked.removeprefix(done))
            said = self._said(answer.said)
            ids += (piece if done else self._begun(piece)) + said
            loss += [self.loss_on == "all"] * (len(ids) - len(said) - len(loss)) + [True] * len(said)
            done = answer.asked + answer.said
        behind = self.renderer.ids(answers[-1].behind)
        return [self._within(ids, loss, behind, max_length)]

    def _last_turn(self, turns: list[Turn], max_length: int) -> TokenRow:
        """The last answer, behind as many exchanges as there is room for."""
        system = turns[:1] if turns[0].role == "system" else []
        for first in range(len(system), len(turns) - 1, 2):
            kept = system + turns[first:]
            try:
                answer = self.renderer.last_answer(kept)
            except ValueError as error:
                raise RowError(str(error)) from error
            ids = self._begun(self.renderer.ids(answer.asked))
            said = self._said(answer.said)
            if len(ids) + len(said) <= max_length:
                break
        loss = [False] * len(ids) + [True] * len(said)
        return self._within(ids + said, loss, self.renderer.ids(answer.behind), max_length)

    def _begun(self, ids: list[int]) -> list[int]:
        return ids if ids[: len(self._begin)] == self._begin else self._begin + ids

    def _said(self, text: str) -> list[int]:
        """An answer's tokens, its end included."""
        found = self.renderer.ids(text)
        if self.renderer.ends_with_special(text):
            return found
        if self.tokenizer.end_id is None:
            raise BackboneError(
                "the tokenizer has no end-of-text token, and the chat template writes no special token behind an "
                "answer: a model that learns it would never end. Give another tokenizer (backbone.tokenizer=<hub id "
                "or folder>), or a template that ends its answers (data.chat_template)."
            )
        return [*found, self.tokenizer.end_id]

    def _within(self, ids: list[int], loss: list[bool], behind: list[int], max_length: int) -> TokenRow:
        """The row cut to ``max_length``: what is behind the last end is let go of unsaid, and nothing else."""
        cut = len(ids) > max_length
        ids, loss = [*ids, *behind][:max_length], [*loss, *[False] * len(behind)][:max_length]
        if not any(loss[1:]):
            raise RowError(
                f"no answer is left in the first {max_length} tokens (data.max_length): what is asked fills them. Set "
                "data.max_length higher, take the row out, or set data.too_long=leave_out (of train and validation)"
            )
        return TokenRow(ids, loss, cut)


class TextRows:
    """Windows of a text: each token is a target once, and has as many before it as fit.

    A window has at most ``max_length`` tokens. The first says all that it can; each next one says the ``stride`` tokens
    behind those that are said. Positions start at 0 in every window.

    Args:
        tokenizer: the backbone's.
        stride: targets of every window but the first; None: ``max_length`` - 1, so that windows overlap by a token.
        begin: ids that stand in front of every text, and are no targets; None: what the tokenizer writes there.
    """

    def __init__(self, tokenizer: LanguageTokenizer, stride: int | None, begin: Sequence[int] | None = None) -> None:
        self.tokenizer = tokenizer
        self.stride = stride
        self._begin = list(tokenizer.begin if begin is None else begin)
        named = [] if begin is None else [self._begin]
        self.fingerprint = _hash("windows 1", tokenizer.fingerprint, stride, *named)

    def encode(self, text: str, max_length: int) -> list[TokenRow]:
        """See :class:`RowEncoder`; a text of a single token, and no begin token, is one row without a target."""
        if max_length < 2:
            raise RowError(f"data.max_length={max_length} leaves no token to say. Set it to at least 2")
        ids = self._begin + self.tokenizer.plain([text])[0]
        if not ids:
            raise RowError("the text has no tokens. Take the row out")
        rows: list[TokenRow] = []
        done = 1  # the very first token is context only
        stride = min(self.stride or max_length, max_length - 1)
        while done < len(ids):
            stop = done + min(stride if rows else max_length - 1, len(ids) - done)
            window = ids[max(0, stop - max_length) : stop]
            rows.append(TokenRow(window, [False] * (len(window) - (stop - done)) + [True] * (stop - done)))
            done = stop
        return rows or [TokenRow(ids, [False] * len(ids))]


def begin_token(tokenizer: LanguageTokenizer) -> int:
    """The tokenizer's begin token, or else its end token, whether or not it writes it in front of texts.

    It is what lm-evaluation-harness puts there (``HFLM.prefix_token_id``).

    Raises:
        BackboneError: if it has neither.
    """
    known = tokenizer.special_ids()
    found = known.get("bos_token_id", known.get("eos_token_id"))
    if found is None:
        raise BackboneError(
            "data.begin=bos: the tokenizer has neither a begin nor an end token that could stand in front of a text. "
            "Leave data.begin=tokenizer, or give another tokenizer (backbone.tokenizer=<hub id or folder>)."
        )
    return found


def language_tokenizer(tokenizer: Tokenizer) -> LanguageTokenizer:
    """``tokenizer``, if it is one of a language model.

    Raises:
        BackboneError: if it is a vocabulary of words.
    """
    if not isinstance(tokenizer, ByteTokenizer | HFTokenizer):
        raise BackboneError(
            f"{type(tokenizer).__name__} knows words and no order of them: a language model's rows cannot be made of "
            "them. Choose a decoder: backbone=smollm2_135m, gpt2 or llama."
        )
    return tokenizer


def _hash(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
