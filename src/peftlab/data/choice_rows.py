"""Token rows of questions with options: a row an option, the option's tokens under loss.

    begin · question · option        which tokens are the option's: :mod:`peftlab.language.options`

For training there is the right option's row alone; to judge a model all of them are read. No end token stands behind
an option: it is compared by what it says. A question that is too long loses its beginning, as in
lm-evaluation-harness, and keeps the begin token; an option is never cut.
"""

from __future__ import annotations

import hashlib
import json

from peftlab.backbones.rendering import LanguageTokenizer
from peftlab.choices import question_of
from peftlab.data.target_rows import RowError, TokenRow
from peftlab.errors import DataError
from peftlab.language.options import split


class ChoiceRows:
    """Rows of a question.

    Args:
        tokenizer: the backbone's.
        right_only: the row of the right option alone.
    """

    def __init__(self, tokenizer: LanguageTokenizer, *, right_only: bool) -> None:
        self.tokenizer = tokenizer
        self.right_only = right_only
        self._begin = list(tokenizer.begin)
        first = tokenizer.special_names().get("bos_token")
        self._alone = tokenizer.end_id if first is None else tokenizer.special_words()[first]
        self.fingerprint = hashlib.sha256(
            json.dumps(["choices 1", tokenizer.fingerprint, right_only]).encode()
        ).hexdigest()

    def encode(self, text: str, max_length: int) -> list[TokenRow]:
        """See :class:`~peftlab.data.target_rows.RowEncoder`; the options' rows stand in their order."""
        question = question_of(text)
        asked = [question.options[question.answer]] if self.right_only else question.options
        return [self._row(question.text, option, max_length) for option in asked]

    def _row(self, question: str, option: str, max_length: int) -> TokenRow:
        try:
            pair = split(question, option, self._encode, self._begin, alone=self._alone)
        except DataError as error:
            raise RowError(str(error).rstrip(".")) from error
        room = max_length - len(pair.target)
        if room < 1:
            raise RowError(
                f"the option {option!r} has {len(pair.target)} tokens, which data.max_length={max_length} leaves no "
                "room for behind a question. Set data.max_length higher"
            )
        context = list(pair.context)
        cut = len(context) > room
        if cut:
            begin = self._begin[:room] if room > len(self._begin) else []
            context = begin + context[len(context) - (room - len(begin)) :]
        return TokenRow([*context, *pair.target], [False] * len(context) + [True] * len(pair.target), cut)

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.plain([text])[0]
