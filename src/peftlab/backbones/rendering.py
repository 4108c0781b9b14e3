"""A dialogue as the text that a model reads, and that text as tokens.

A chat template (Jinja, run in transformers' sandbox) writes roles and special tokens around what is said. What is said
is text: where it quotes ``<|end|>`` it is read letter by letter, and only what the template itself has written is a
special token. So special words inside of contents are put away while the template runs (as characters of a private
area of Unicode, which templates neither know nor trim), and put back when the text has been cut at the template's own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from peftlab.backbones.tokenizers import ByteTokenizer, HFTokenizer
from peftlab.dialogues import Turn
from peftlab.errors import DataError, first_line

LanguageTokenizer = ByteTokenizer | HFTokenizer
PLAIN = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
"""No template at all: a prompt and its response, one behind the other."""
_PUT_AWAY = 0xF0000
_DAY = datetime(2024, 7, 26)
"""What templates that write today's date are told: a run of tomorrow reads what one of today reads."""


@dataclass(frozen=True)
class Answer:
    """One answer of a rendered dialogue, and what stands around it, as text with special words put away."""

    asked: str
    """All that the model is given, the generation prompt included."""
    said: str
    """What it is to say, up to and with the token that ends it."""
    behind: str
    """What the template writes behind that."""


class Renderer:
    """Renders dialogues by one template for one tokenizer."""

    def __init__(self, tokenizer: LanguageTokenizer, template: str) -> None:
        self.tokenizer = tokenizer
        self.template = template
        words = sorted((word for word in tokenizer.special_words() if word), key=len, reverse=True)
        self._words = {word: chr(_PUT_AWAY + number) for number, word in enumerate(words)}
        either = "|".join(map(re.escape, words)) or r"(?!)"
        self._special = re.compile(f"({either})")
        self._ending = re.compile(rf"(.*?(?:{either}))((?:\s|{either})*)", re.DOTALL)

    def asked(self, turns: Sequence[Turn]) -> str:
        """What a model is given to say the next turn, which is its own."""
        return self._rendered(turns, generation_prompt=True)

    def answers(self, turns: Sequence[Turn]) -> list[Answer]:
        """The answers of a dialogue, each as the model would be asked for it.

        Raises:
            ValueError: in words, where the template rewrites what came before, so that one row cannot hold them all.
        """
        found: list[Answer] = []
        for number, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            answer = self.last_answer(turns[: number + 1])
            if found and not answer.asked.startswith(found[-1].asked + found[-1].said):
                raise ValueError(
                    f"the template writes the answer before message {number} otherwise once the dialogue goes on (it "
                    "rewrites what came before), so one row cannot hold both answers as they are asked for"
                )
            found.append(answer)
        return found

    def last_answer(self, turns: Sequence[Turn]) -> Answer:
        """The last of ``turns``, as the model would be asked for it.

        Raises:
            ValueError: in words, where the template writes it otherwise.
        """
        asked = self.asked(turns[:-1])
        whole = self._rendered(turns, generation_prompt=False)
        if not whole.startswith(asked):
            raise ValueError(
                f"the template does not write message {len(turns)} behind its own generation prompt: it would be "
                "learned behind another text than it is asked behind"
            )
        ended = self._ending.fullmatch(whole, len(asked))
        said, behind = (ended[1], ended[2]) if ended else (whole[len(asked) :], "")
        return Answer(asked, said, behind)

    def ids(self, text: str) -> list[int]:
        """Tokens of rendered ``text``, or of a piece of it that begins and ends where a token may."""
        if not any(mark in text for mark in self._words.values()):
            return self.tokenizer.marked(text)
        words, found = self.tokenizer.special_words(), []
        for piece in self._special.split(text):
            found += [words[piece]] if piece in words else self.tokenizer.plain([self._put_back(piece)])[0]
        return found

    def ends_with_special(self, text: str) -> bool:
        """Whether the last token of ``text`` is a special one, which the template has written."""
        return any(text.endswith(word) for word in self._words)

    def _rendered(self, turns: Sequence[Turn], *, generation_prompt: bool) -> str:
        from transformers.utils.chat_template_utils import render_jinja_template

        messages = [{"role": turn.role, "content": self._put_away(turn.content)} for turn in turns]
        names: dict[str, Any] = {"strftime_now": _DAY.strftime, **self.tokenizer.special_names()}
        try:
            rendered = render_jinja_template(
                conversations=[messages],
                chat_template=self.template,
                add_generation_prompt=generation_prompt,
                **names,
            )
        except Exception as error:  # whatever the template raises, and Jinja of a broken one
            raise DataError(f"the chat template cannot write it: {first_line(error)}") from error
        return str(rendered[0][0])  # texts, and what of them is generated

    def _put_away(self, content: str) -> str:
        if any(mark in content for mark in self._words.values()):
            raise DataError(f"the text {content[:60]!r} holds a character of a private area (U+F0000 …). Take it out")
        return self._special.sub(lambda found: self._words[found[0]], content)

    def _put_back(self, text: str) -> str:
        for word, mark in self._words.items():
            text = text.replace(mark, word)
        return text
