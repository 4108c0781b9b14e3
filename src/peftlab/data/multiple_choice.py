"""Questions with options, one of them right: what a language model is tested on, and tuned on. Imports no torch.

A row is made into a question by ``data.question`` and into options by ``data.option``, templates with columns in
braces; so anyone's labelled file can be used, with options that all rows share. How a row becomes tokens is told in
:mod:`peftlab.data.choice_rows`, what is counted in :mod:`peftlab.objectives.multiple_choice`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any, Literal

from peftlab.choices import written
from peftlab.data.base import Splits, Texts, TooLong
from peftlab.data.dialogue_template import filled_in, require_said, slots
from peftlab.data.instructions import LENGTHS
from peftlab.data.labels import refusal
from peftlab.data.own_files import FilesOrHub
from peftlab.data.readers import read_table
from peftlab.data.splits import assemble, test_or_hold_out
from peftlab.errors import DataError, listed, nearest
from peftlab.fields import Fraction, PositiveInt, added, own_files
from peftlab.language.options import RULE
from peftlab.objectives.base import ObjectiveName
from peftlab.objectives.multiple_choice import Choice
from peftlab.raw_rows import RawRows

if TYPE_CHECKING:
    from peftlab.backbones.base import Tokenizer
    from peftlab.data.choice_rows import ChoiceRows

OF_OPTION = ("option", "letter", "number")
"""Slots of ``data.option`` that are no columns."""
OF_QUESTION = "choices"
"""Slot of ``data.question`` that is no column: the options, a line each, with their letters."""
MOST = len(ascii_uppercase)


@dataclass(kw_only=True)
class MultipleChoice(FilesOrHub):
    """csv, tsv, jsonl or parquet files with questions, their options, and which one is right."""

    path: str | None = own_files()
    """A folder of train.*, validation.*, test.*, or one file; instead of ``train``, ``validation`` and ``test``."""
    train: str | None = own_files()
    """File of training rows."""
    validation: str | None = own_files()
    """File of validation rows; null: ``val_fraction`` of train."""
    test: str | None = own_files()
    """File of test rows; null: ``holdout_fraction`` of train."""
    hub: dict[str, Any] | None = added(None)
    """A set of the hub instead of files: {id: namespace/name, config: null, revision: main, train: train, validation:
    null, test: null}; the last three are its splits, and one that is null is held out of train."""
    question: str = "{question}"
    """What the model reads before an option: columns in braces, ``Question: {question}\\nAnswer:``; ``{choices}`` are
    the options, a line each, with letters."""
    option: str = " {option}"
    """How an option is written behind the question; ``{letter}`` and ``{number}`` name it."""
    options_column: str = "options"
    """Column (or JSON key) of the options of each row: a list; in csv and tsv a list in JSON."""
    option_columns: list[str] | None = None
    """Instead of ``options_column``, a column for each option; an empty cell is no option."""
    options: list[str] | None = None
    """Instead of ``options_column``, the options of all rows, in the order of the answers."""
    choice: str = added("{letter}. {option}\n")
    """How an option is written in the question's ``{choices}``; white space at the end of all is left out."""
    answer_column: str = "answer"
    """Column (or JSON key) of the right option."""
    answer: Literal["index", "number", "letter", "text"] = "index"
    """What stands in ``answer_column`` for the right option: its ``index`` from 0, its ``number`` from 1, its
    ``letter``, or its ``text``."""
    names_column: str | None = added(None)
    """Column (or JSON key) of what each row calls its options, a list (A, B, …); the answer is one of these names, and
    ``answer`` is not asked."""
    too_long: TooLong = added("cut")
    """Rows longer than ``max_length``: ``cut``; ``leave_out`` of training and validation (a test row is cut); or
    ``refuse`` the run, naming them."""
    batch_size: PositiveInt = 8
    """Questions in a training batch (micro-batch) of each process; with ``global_batch_size``, the most that it
    computes at once."""
    eval_batch_size: PositiveInt = 16
    """Options in a batch of each process, in validation and test."""
    holdout_fraction: Fraction = 0.2
    """Share of train held out as test when no test file is given."""
    objective: ObjectiveName = "multiple_choice"
    """What is learned: always ``multiple_choice``, the tokens of the right option, judged by the likeliest one."""

    def __post_init__(self) -> None:
        """Raise ValueError for what does not fit together."""
        if self.truncation != "head":
            raise ValueError(LENGTHS)
        self._require_one_source()
        slots(self.question, "data.question")
        for key, text in (("option", self.option), ("choice", self.choice)):
            _require_slots(key, text)
        if self.options is not None and self.option_columns is not None:
            raise ValueError("data.options and data.option_columns both say what the options are. Give one of them.")
        for key, given in (("options", self.options), ("option_columns", self.option_columns)):
            if given is not None and (len(given) < 2 or len(set(given)) < len(given) or len(given) > MOST):
                raise ValueError(f"data.{key}={given}: there must be 2 to {MOST} of them, each another one.")

    def load(self) -> Splits:
        """Read the files, and hold out the splits that are not given."""
        files, facts = self._sources(*self._cells())
        read = {split: self._read(split, file) for split, file in files.items()}
        most = max(len(row[1]) for rows in read.values() for row in rows[1])
        texts = {split: _texts(table, rows, most) for split, (table, rows) in read.items()}
        train, test, held_out = test_or_hold_out(self, self.holdout_fraction, texts, self._title("train", files))
        return assemble(
            self,
            train=train,
            validation=texts.get("validation"),
            test=test,
            label_names=tuple(self.options or ascii_uppercase[:most]),
            train_kind=self._kind("train", files, len(texts["train"]), "questions"),
            test_kind=held_out or self._kind("test", files, len(test), "questions"),
            provenance={
                "source": "questions with options",
                **facts,
                "conventions": {
                    "tokens of an option": RULE,
                    "begin": "what the tokenizer puts in front of a text; else its first token is an empty question",
                    "length": "characters of the option as the file has it",
                    "ties": "the first option",
                },
            },
        )

    def row_encoder(self, tokenizer: Tokenizer, *, training: bool = False) -> ChoiceRows:
        """See :meth:`DataSet.row_encoder`."""
        from peftlab.data.choice_rows import ChoiceRows
        from peftlab.data.target_rows import language_tokenizer

        return ChoiceRows(language_tokenizer(tokenizer), right_only=training)

    def of_too_long(self) -> TooLong:
        """See :meth:`DataSet.of_too_long`."""
        return self.too_long

    def columns(self, task: str | None = None) -> tuple[str, str | None]:
        """See :meth:`DataSet.columns`: the first column of the question."""
        return next((slot for slot in slots(self.question) if slot != OF_QUESTION), "question"), None

    # -- rows ------------------------------------------------------------------------------------------

    def _cells(self) -> tuple[list[str], list[str]]:
        """The columns that every row must have, and those that may be empty."""
        needed = [slot for slot in slots(self.question) if slot != OF_QUESTION] + [self.answer_column]
        needed += [] if self.names_column is None else [self.names_column]
        if self.options is not None:
            return needed, []
        return (needed, self.option_columns) if self.option_columns else ([*needed, self.options_column], [])

    def _read(self, split: str, file: Path) -> tuple[RawRows, list[_Row]]:
        try:
            return self._rows(file)
        except DataError as error:
            raise DataError(f"{self._key(split)}: {error}") from None

    def _rows(self, file: Path) -> tuple[RawRows, list[_Row]]:
        """The table that names the rows, and the rows; of what is none of them, at most 20 are named."""
        asked = [slot for slot in slots(self.question) if slot != OF_QUESTION]
        needed, optional = self._cells()
        tables = {name: read_table(file, name, None) for name in dict.fromkeys([*needed, *optional])}
        first = next(iter(tables.values()))
        found = {row: fault for table in tables.values() for row, fault in table.faults.items()}
        faults: dict[int, str] = {}
        rows: list[_Row] = []
        for row in range(len(first.texts)):
            if row in found:
                faults[row] = found[row]
                continue
            try:
                rows.append(self._row({name: table.texts[row] for name, table in tables.items()}, asked))
            except DataError as error:
                faults[row] = f"{first.place(row)}: {error}."
        if faults:
            raise refusal(replace(first, faults=found), faults)
        return first, rows

    def _row(self, cells: Mapping[str, object], asked: Sequence[str]) -> _Row:
        for column in asked:
            require_said(column, cells[column])
        options = self.options or self._options(cells)
        answer = self._answer(cells, options)
        named = [
            {"option": option, "letter": ascii_uppercase[index], "number": str(index + 1)}
            for index, option in enumerate(options)
        ]
        choices = "".join(filled_in(self.choice, one) for one in named).rstrip()
        said = {column: str(cells[column]) for column in asked} | {OF_QUESTION: choices}
        shown = [filled_in(self.option, one) for one in named]
        return written(filled_in(self.question, said), shown, answer), [len(option) for option in options], answer

    def _options(self, cells: Mapping[str, object]) -> list[str]:
        if self.option_columns is not None:
            given = [cells[column] for column in self.option_columns]
            while given and _empty(given[-1]):  # a question with fewer options than there are columns
                given.pop()
            named = self.option_columns
        else:
            given = _as_list(cells[self.options_column], self.options_column)
            named = [f"{self.options_column}[{number}]" for number in range(len(given))]
        for name, option in zip(named, given, strict=False):
            require_said(name, option)
        options = [str(option) for option in given]
        if not 2 <= len(options) <= MOST:
            raise DataError(f"there must be 2 to {MOST} options, and there are {len(options)}")
        if repeated := [option for number, option in enumerate(options) if option in options[:number]]:
            raise DataError(f"the option {repeated[0]!r} stands there twice, so that nobody can choose between the two")
        return options

    def _names(self, cells: Mapping[str, object], options: Sequence[str]) -> list[str]:
        """What the row calls its options."""
        names = [str(name) for name in _as_list(cells[str(self.names_column)], str(self.names_column))]
        if len(names) != len(options) or len(set(names)) < len(names):
            raise DataError(
                f"there are {len(options)} options and these names of them (column '{self.names_column}'): "
                f"{', '.join(names)}. Each must have one of its own"
            )
        return names

    def _answer(self, cells: Mapping[str, object], options: Sequence[str]) -> int:
        cell, column, way = cells[self.answer_column], self.answer_column, f"data.answer={self.answer}"
        if _empty(cell):
            raise DataError(f"the answer (column '{column}') is missing. Remove the row or fill it in")
        text = str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)
        if self.names_column is not None:
            names, way = self._names(cells, options), f"data.names_column={self.names_column}"
        elif self.answer == "text":
            names = list(options)
        elif self.answer == "letter":
            names = list(ascii_uppercase[: len(options)])
        else:
            first = 0 if self.answer == "index" else 1
            names = [str(number) for number in range(first, first + len(options))]
        if text.strip() not in names and text not in names:
            others = (
                ""
                if self.answer == "text" or self.names_column
                else "; data.answer may be index, number, letter or text"
            )
            raise DataError(
                f"the answer {cell!r} (column '{column}') is no option. With {way} it is one of "
                f"{listed(names, 12) if self.answer == 'text' else ', '.join(names)}{others}"
            )
        return names.index(text if text in names else text.strip())


def _require_slots(key: str, text: str) -> None:
    """Raise ValueError for a way to write an option that has other slots than an option has, or none."""
    named = slots(text, f"data.{key}")
    if unknown := [slot for slot in named if slot not in OF_OPTION]:
        raise ValueError(
            f"data.{key}={text!r} has the slot {{{unknown[0]}}}. It may have: "
            f"{', '.join(f'{{{slot}}}' for slot in OF_OPTION)}.{nearest(unknown[0], OF_OPTION)}"
        )
    if not named:
        raise ValueError(
            f"data.{key}={text!r} has no slot, so that all options would be the same text. Put {{option}} "
            "(or {{letter}}) into it."
        )


_Row = tuple[str, list[int], int]
"""The question as a string, the characters of its options, and the answer."""


def _texts(table: RawRows, rows: Sequence[_Row], most: int) -> Texts:
    labels: list[Any] = [Choice(answer, tuple(sizes), most) for _, sizes, answer in rows]
    return Texts([text for text, _, _ in rows], labels, [table.place(row) for row in range(len(rows))])


def _empty(cell: object) -> bool:
    return cell is None or cell != cell or (isinstance(cell, str) and not cell.strip())


def _as_list(cell: object, column: str) -> list[object]:
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        try:
            cell = json.loads(cell)
        except ValueError:
            raise DataError(f'the options (column \'{column}\') are no list in JSON, as ["yes", "no"]') from None
    if _empty(cell):
        raise DataError(f"the options (column '{column}') are missing. Remove the row or fill them in")
    if not isinstance(cell, list | tuple):
        raise DataError(
            f"the options (column '{column}') are {cell!r}, and no list. Where each has a column of its own, name "
            "these (data.option_columns); where all rows have the same, say them (data.options)"
        )
    return list(cell)
