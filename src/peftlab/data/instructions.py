"""Prompts and their answers: what a language model is tuned on. Imports no torch.

A row is a prompt and a response, or messages with roles, or what ``data.template`` makes of a labelled row. It becomes
a dialogue (:mod:`peftlab.dialogues`); what is put around it, and which tokens are under loss, is told in
:mod:`peftlab.data.target_rows`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from peftlab.data.base import Splits, Texts, TooLong
from peftlab.data.dialogue_template import DialogueTemplate
from peftlab.data.generation import Generation
from peftlab.data.labels import refusal
from peftlab.data.own_files import LanguageFiles
from peftlab.data.readers import read_table
from peftlab.data.splits import assemble, test_or_hold_out
from peftlab.dialogues import ANSWERS, ASKS, Turn, out_of_order, turns_of, written
from peftlab.errors import DataError
from peftlab.fields import Fraction, PositiveInt, added, own_files
from peftlab.objectives.base import ObjectiveName
from peftlab.objectives.causal_lm import NAMES
from peftlab.raw_rows import RawRows
from peftlab.terminal import half_character

if TYPE_CHECKING:
    from peftlab.backbones.base import Tokenizer
    from peftlab.data.target_rows import DialogueRows

OF_THE_TOKENIZER, NO_TEMPLATE = "tokenizer", "none"
LENGTHS = "data.truncation=head_and_tail would cut out the middle of a dialogue. Leave data.truncation=head."


@dataclass(kw_only=True)
class Instructions(LanguageFiles):
    """csv, tsv, jsonl or parquet files with prompts and responses, or with messages (jsonl, parquet)."""

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
    prompt_column: str = "prompt"
    """Column (or JSON key) of what is asked."""
    response_column: str = "response"
    """Column (or JSON key) of the answer."""
    messages_column: str | None = None
    """JSON key of whole conversations instead: a list of {role, content}; roles are system, user and assistant."""
    template: dict[str, Any] | None = None
    """Prompt and response made of other columns: {prompt: "… {text} …", response: "{label}", words: {label: {0:
    no}}}."""
    chat_template: str = OF_THE_TOKENIZER
    """What is written around the turns: ``tokenizer``, its own chat template; ``none``, nothing: a response stands
    behind its prompt; a Jinja template; or the file of one."""
    loss_on: Literal["response", "all", "last_turn"] = "response"
    """What is learned: every answer, every token, or the last answer alone."""
    answers: Literal["together", "apart"] = "together"
    """A conversation with several answers is one row, or a row for each, as it would be asked for (some templates
    rewrite what came before; then they must stand apart)."""
    batch_size: PositiveInt = 8
    """Rows in a training batch (micro-batch) of each process; with ``global_batch_size``, the most that a process
    computes at once."""
    eval_batch_size: PositiveInt = 16
    """Rows in a batch of each process, in validation and test."""
    too_long: TooLong = added("cut")
    """Rows longer than ``max_length``: ``cut``; ``leave_out`` of training and validation (a test row is cut); or
    ``refuse`` the run, naming them."""
    packing: bool = False
    """Let the texts of a training batch stand behind each other in rows of at most ``max_length`` tokens, without
    seeing each other: the same steps, with less padding."""
    generate: dict[str, Any] | None = added(None)
    """Have the answers of the test written, greedily, and judged: {max_new_tokens: 64, judge: exact_match, stop: []};
    ``judge`` is one or several of exact_match, number, bleu and rouge_l. null: they are not."""
    holdout_fraction: Fraction = 0.2
    """Share of train held out as test when no test file is given."""
    objective: ObjectiveName = "causal_lm"
    """What is learned: always ``causal_lm``, the answers' tokens."""

    def __post_init__(self) -> None:
        """Raise ValueError for what does not fit together."""
        if self.truncation != "head":
            raise ValueError(LENGTHS)
        self._require_one_source()
        self.generation()
        if self.template is not None:
            DialogueTemplate.of(self.template)
            if self.messages_column is not None:
                raise ValueError("data.template makes rows of columns, and data.messages_column names whole ones.")

    def tells_prompts(self) -> bool:
        """Unless prompts are learned as well."""
        return self.loss_on != "all"

    def load(self) -> Splits:
        """Read the files, and hold out the splits that are not given."""
        files, facts = self._sources(*self._cells())
        texts = {split: self._read(split, file) for split, file in files.items()}
        train, test, held_out = test_or_hold_out(self, self.holdout_fraction, texts, self._title("train", files))
        splits = assemble(
            self,
            train=train,
            validation=texts.get("validation"),
            test=test,
            label_names=NAMES,
            train_kind=self._kind("train", files, len(texts["train"]), "rows"),
            test_kind=held_out or self._kind("test", files, len(test), "rows"),
            provenance={"source": "instructions"} | facts,
        )
        return _apart(splits) if self.answers == "apart" else splits

    def row_encoder(self, tokenizer: Tokenizer, *, training: bool = False) -> DialogueRows:
        """See :meth:`DataSet.row_encoder`."""
        from peftlab.data.target_rows import DialogueRows, language_tokenizer

        last = self.answers == "apart" and self.loss_on == "response"
        return DialogueRows(
            language_tokenizer(tokenizer), self._chat_template(tokenizer), "last_turn" if last else self.loss_on
        )

    def of_too_long(self) -> TooLong:
        """See :meth:`DataSet.of_too_long`."""
        return self.too_long

    def generation(self) -> Generation | None:
        """See :meth:`DataSet.generation`."""
        return None if self.generate is None else Generation.of(self.generate)

    def as_prompt(self, text: str) -> str:
        """See :meth:`DataSet.as_prompt`: ``text`` in the slot of ``data.template``, if there is one.

        Raises:
            DataError: if the template makes a prompt of several columns.
        """
        if self.template is None:
            return text
        return DialogueTemplate.of(self.template).asked(text)

    def identity_values(self) -> dict[str, Any]:
        """A template in a file enters by what it says."""
        return {"chat_template": self._written_template() or self.chat_template}

    def columns(self, task: str | None = None) -> tuple[str, str | None]:
        """See :meth:`DataSet.columns`."""
        return self.prompt_column, None

    # -- templates -------------------------------------------------------------------------------------

    def _written_template(self) -> str | None:
        """The template that the config gives, itself or in a file; None: it gives none."""
        if self.chat_template in (OF_THE_TOKENIZER, NO_TEMPLATE):
            return None
        if "{" in self.chat_template:
            return self.chat_template
        file = Path(self.chat_template).expanduser()
        try:
            return file.read_text(encoding="utf-8").rstrip("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"data.chat_template={self.chat_template}: this is not '{OF_THE_TOKENIZER}', '{NO_TEMPLATE}', "
                f"a Jinja template, nor a file that can be read ({error})."
            ) from None

    def _chat_template(self, tokenizer: Any) -> str:
        from peftlab.backbones.rendering import PLAIN

        if self.chat_template == NO_TEMPLATE:
            return PLAIN
        found = self._written_template() or tokenizer.chat_template
        if found is None:
            raise DataError(
                f"data.chat_template={OF_THE_TOKENIZER}: this backbone's tokenizer has none, as those of base models "
                f"do. Set data.chat_template={NO_TEMPLATE} (a response stands right behind its prompt), or give "
                "a template in Jinja, or a file of one."
            )
        return str(found)

    # -- rows ------------------------------------------------------------------------------------------

    def _cells(self) -> tuple[list[str], list[str]]:
        """The columns that every row must have, and those that may be empty."""
        if self.messages_column is not None:
            return [self.messages_column], []
        if self.template is None:
            return [self.prompt_column, self.response_column], []
        template = DialogueTemplate.of(self.template)
        return [name for name in template.columns() if name not in template.without], list(template.without)

    def _read(self, split: str, file: Path) -> Texts:
        try:
            table, rows, kinds = self._rows(file)
            return _texts(table, rows, kinds)
        except DataError as error:
            raise DataError(f"{self._key(split)}: {error}") from None

    def _rows(self, file: Path) -> tuple[RawRows, Callable[[int], list[Turn]], list[Any] | None]:
        """The table that names the rows, what makes turns of one, and the kinds that rows are drawn by."""
        if self.messages_column is not None:
            table = read_table(file, self.messages_column, None)
            return table, lambda row: _messages(table.texts[row], self.messages_column or ""), None
        if self.template is None:
            asked, said = (read_table(file, name, None) for name in (self.prompt_column, self.response_column))
            columns = {"prompt": asked.texts, "response": said.texts}
            return _joined(asked, said), lambda row: _pair(columns["prompt"][row], columns["response"][row], self), None
        template = DialogueTemplate.of(self.template)
        tables = {name: read_table(file, name, None) for name in template.columns()}
        kind = template.kind_column()
        first = _joined(*tables.values())

        def made(row: int) -> list[Turn]:
            prompt, response = template.filled({name: table.texts[row] for name, table in tables.items()})
            return [Turn(ASKS, prompt), Turn(ANSWERS, response)]

        return first, made, None if kind is None else [str(cell) for cell in tables[kind].texts]


def _texts(table: RawRows, turns_at: Callable[[int], list[Turn]], kinds: list[Any] | None) -> Texts:
    """The rows of ``table`` as dialogues.

    Raises:
        DataError: naming file and row of those that are none, at most 20.
    """
    texts: list[str] = []
    places: list[str] = []
    faults: dict[int, str] = {}
    for row in range(len(table.texts)):
        place = table.place(row)
        try:
            if row in table.faults:
                faults[row] = table.faults[row]
                continue
            texts.append(written(_checked(turns_at(row))))
            places.append(place)
        except DataError as error:
            faults[row] = f"{place}: {error}."
    if faults:
        raise refusal(table, faults)
    return Texts(texts, [None] * len(texts) if kinds is None else kinds, places)


def _checked(turns: list[Turn]) -> list[Turn]:
    """``turns``, in order and with something said in each answer; errors are without their place."""
    if wrong := out_of_order(turns):
        raise DataError(wrong)
    for number, turn in enumerate(turns, start=1):
        if turn.role == ANSWERS and not turn.content.strip():
            raise DataError(
                "the response is empty: there is nothing to learn. Remove the row or fill it in"
                if len(turns) == 2
                else f"message {number}, of the assistant, is empty. Remove the row or fill it in"
            )
        if not turn.content.isascii() and (half := half_character(turn.content)) is not None:
            raise DataError(f"message {number} holds {half}, one half of a character, which nothing can write")
    return turns


def _pair(prompt: object, response: object, config: Instructions) -> list[Turn]:
    for what, column, cell in (
        ("prompt", config.prompt_column, prompt),
        ("response", config.response_column, response),
    ):
        if not isinstance(cell, str):
            said = "missing" if cell is None or cell != cell else f"no text but {cell!r} ({type(cell).__name__})"
            raise DataError(f"the {what} (column '{column}') is {said}. Remove the row or fill it in")
    return [Turn(ASKS, str(prompt)), Turn(ANSWERS, str(response))]


def _messages(cell: object, column: str) -> list[Turn]:
    form = 'It must be a list such as [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]'
    if not isinstance(cell, list) or not cell:
        said = "empty" if not cell else f"a {type(cell).__name__}"
        raise DataError(f"the messages (key '{column}') are {said}. {form}")
    turns = []
    for number, message in enumerate(cell, start=1):
        parts = message if isinstance(message, Mapping) else {}
        role, content = parts.get("role"), parts.get("content")
        if not isinstance(role, str) or not isinstance(content, str):
            raise DataError(f"message {number} (key '{column}') has no role and content that are texts. {form}")
        turns.append(Turn(role, content))
    return turns


def _joined(first: RawRows, *others: RawRows) -> RawRows:
    """``first`` with the faults of all columns."""
    faults = dict(first.faults)
    for other in others:
        faults |= other.faults
    return replace(first, faults=faults)


def _apart(splits: Splits) -> Splits:
    """Each answer a row of its own, after the rows were shared out: no conversation is on two sides."""
    train, validation, test = map(_answers_apart, (splits.train, splits.validation, splits.test))
    rows = {"train": len(train), "validation": len(validation), "test": len(test)}
    facts = splits.provenance | {"rows": rows, "answers": "apart"}
    return replace(splits, train=train, validation=validation, test=test, provenance=facts)


def _answers_apart(texts: Texts) -> Texts:
    found = [(row, part, number) for row, text in enumerate(texts.texts) for number, part in _each_answer(text)]
    places = [f"{texts.place(row, 'data')}, answer {number}" for row, _, number in found]
    return Texts([part for _, part, _ in found], [texts.labels[row] for row, _, _ in found], places)


def _each_answer(text: str) -> Iterator[tuple[int, str]]:
    turns, answers = turns_of(text), 0
    for number, turn in enumerate(turns, start=1):
        if turn.role == ANSWERS:
            answers += 1
            yield answers, written(turns[:number])
