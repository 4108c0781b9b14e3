"""Prompt and answer made of a row's cells: ``data.template`` turns anyone's labelled file into instructions.

prompt: "Question: {text}\nThe question asks for"
response: " {label}"
words: {label: {0: an abbreviation, 1: a thing}}          what stands for a cell, by column; others stand as they are
without: {input: "Question: {text}"}                      the prompt of rows where the cell of that column is empty
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from peftlab.errors import DataError, listed, nearest

_SLOT = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
KEYS = ("prompt", "response", "words", "without")


@dataclass(frozen=True)
class DialogueTemplate:
    """Two texts with slots ``{column}``, and words for cells."""

    prompt: str
    response: str
    words: Mapping[str, Mapping[str, str]]
    without: Mapping[str, str] = field(default_factory=dict)
    """At most one: a column that may be empty, and the prompt of rows where it is."""

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> DialogueTemplate:
        """What ``data.template`` says.

        Raises:
            ValueError: if it says something else, or answers with no cell of the row.
        """
        if unknown := [key for key in given if key not in KEYS]:
            raise ValueError(
                f"data.template has no key '{unknown[0]}'.{nearest(str(unknown[0]), KEYS)} It has: {', '.join(KEYS)}."
            )
        for key in ("prompt", "response"):
            if not isinstance(given.get(key), str):
                raise ValueError(
                    f"data.template.{key} must be a text with columns in braces, such as {{text}}, and is "
                    f"{given.get(key)!r}."
                )
        words = given.get("words") or {}
        if not isinstance(words, Mapping) or not all(isinstance(of, Mapping) for of in words.values()):
            raise ValueError("data.template.words must map columns to words for their cells: {label: {0: no, 1: yes}}.")
        plain = {str(column): {str(cell): str(word) for cell, word in of.items()} for column, of in words.items()}
        found = cls(given["prompt"], given["response"], plain, _without(given.get("without") or {}))
        slots(found.prompt)
        for column, prompt in found.without.items():
            if column not in slots(found.prompt) or column in slots(prompt) or column in slots(found.response):
                raise ValueError(
                    f"data.template.without.{column}: data.template.prompt must have the slot {{{column}}}, and "
                    "neither this prompt nor the response may have it: it is for rows where that cell is empty."
                )
        if not slots(found.response):
            raise ValueError(
                f"data.template.response={found.response!r} has no slot, so that every row would have the same answer. "
                "Put the column that answers into it, in braces: {label}."
            )
        if unused := [column for column in plain if column not in found.columns()]:
            raise ValueError(
                f"data.template.words.{unused[0]}: neither prompt nor response has the slot {{{unused[0]}}}."
                f"{nearest(unused[0], found.columns())}"
            )
        return found

    def columns(self) -> list[str]:
        """The columns that it wants, each once."""
        prompts = [self.prompt, *self.without.values()]
        return list(dict.fromkeys([*(slot for prompt in prompts for slot in slots(prompt)), *slots(self.response)]))

    def kind_column(self) -> str | None:
        """The column of the answer whose cells are words of a list, if it is one: rows are drawn by it."""
        named = [column for column in slots(self.response) if column in self.words]
        return named[0] if len(named) == 1 else None

    def asked(self, text: str) -> str:
        """The prompt of a row whose one column is ``text``.

        Raises:
            DataError: if a prompt is made of several columns.
        """
        prompt = next(iter(self.without.values()), self.prompt)
        columns = list(dict.fromkeys(slots(prompt)))
        if len(columns) != 1:
            raise DataError(
                f"data.template.prompt has {len(columns)} columns ({listed(columns)}), and one text was given. Test "
                "the run on a file that has them: peftlab evaluate RUN data.path=FILE."
            )
        return filled_in(prompt, {columns[0]: self._word(columns[0], text)})

    def filled(self, cells: Mapping[str, object]) -> tuple[str, str]:
        """Prompt and response of a row.

        Raises:
            DataError: for a cell that is empty, or that has no word; without its place.
        """
        empty = next((column for column in self.without if _is_empty(cells[column])), None)
        prompt = self.prompt if empty is None else self.without[empty]
        named = dict.fromkeys([*slots(prompt), *slots(self.response)])
        said = {column: self._word(column, cells[column]) for column in named}
        return filled_in(prompt, said), filled_in(self.response, said)

    def _word(self, column: str, cell: object) -> str:
        require_said(column, cell)
        words = self.words.get(column)
        if words is None:
            return str(cell)
        if str(cell) not in words:
            raise DataError(
                f"data.template.words.{column} has no word for {cell!r} (column '{column}'). It has words for "
                f"{listed(words, 12)}"
            )
        return words[str(cell)]


def _without(given: Any) -> dict[str, str]:
    if not isinstance(given, Mapping) or len(given) > 1 or not all(isinstance(text, str) for text in given.values()):
        raise ValueError(
            'data.template.without must map one column to the prompt of rows where it is empty: {input: "… {text} …"}.'
        )
    return {str(column): text for column, text in given.items()}


def _is_empty(cell: object) -> bool:
    return cell is None or cell != cell or (isinstance(cell, str) and not cell.strip())


def require_said(column: str, cell: object) -> None:
    """Raise DataError, without its place, for a cell that is empty, or neither text nor number."""
    if _is_empty(cell):
        raise DataError(f"the cell of column '{column}' is empty. Remove the row or fill it in")
    if not isinstance(cell, str | int | float):
        raise DataError(f"the cell of column '{column}' is a {type(cell).__name__}, and no text or number")


def slots(text: str, key: str = "data.template") -> list[str]:
    """The columns in braces of ``text``, in order.

    Raises:
        ValueError: for a brace that is none of a slot.
    """
    found = []
    for match in _SLOT.finditer(text):
        if match[0] in ("{{", "}}"):
            continue
        if not (match[1] or "").strip():
            raise ValueError(
                f"{key}: {text!r} has a single brace, or an empty slot. A slot is a column's name in braces, "
                "{text}; a brace itself is written twice."
            )
        found.append(match[1])
    return found


def filled_in(text: str, said: Mapping[str, str]) -> str:
    """``text`` with what is ``said`` in its slots."""

    def put(match: re.Match[str]) -> str:
        return match[0][0] if match[0] in ("{{", "}}") else said[match[1]]

    return _SLOT.sub(put, text)


def require_columns(file: str, wanted: Sequence[str], there: Sequence[str]) -> None:
    """Raise DataError for the first of ``wanted`` that ``file`` has not."""
    for column in wanted:
        if column not in there:
            raise DataError(
                f"{file}: there is no column '{column}', which data.template names. Columns there are: "
                f"{', '.join(there)}.{nearest(column, there)}"
            )
