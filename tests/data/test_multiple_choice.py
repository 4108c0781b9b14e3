"""Questions with options: what is read, which tokens are the option's, and what is said of rows that are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from peftlab.choices import question_of
from peftlab.data.choice_rows import ChoiceRows
from peftlab.data.multiple_choice import MultipleChoice
from peftlab.data.target_rows import RowError
from peftlab.errors import DataError, PeftlabError
from tests.data.tiny_language import language_tokenizer, plain_tokenizer

ROWS: list[dict[str, Any]] = [
    {"question": "Is it true?", "options": ["yes", "no"], "answer": 0},
    {"question": "Which is the sum?", "options": ["one", "twelve", "three"], "answer": 1},
    {"question": "And the rest?", "options": ["four", "three"], "answer": 1},
    {"question": "Is it not true?", "options": ["yes", "no"], "answer": 1},
]


def jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    return {name: jsonl(tmp_path / f"{name}.jsonl", ROWS) for name in ("train", "validation", "test")}


def test_rows_are_questions_with_labels(files: dict[str, str]) -> None:
    splits = MultipleChoice(**files, question="Question: {question}\nAnswer:").load()
    first = question_of(splits.test.texts[1])
    assert first == ("Question: Which is the sum?\nAnswer:", (" one", " twelve", " three"), 1)
    assert splits.test.labels[1] == (1, (3, 6, 5), 3)
    assert splits.label_names == ("A", "B", "C")
    assert splits.provenance["rows_by_label"]["test"] == {"A": 1, "B": 3, "C": 0}


@pytest.mark.parametrize(
    ("how", "rows", "shown", "answer"),
    [
        ({"answer": "number"}, [{"options": ["a", "b"], "answer": "2"}], (" a", " b"), 1),
        ({"answer": "letter"}, [{"options": ["a", "b"], "answer": "B"}], (" a", " b"), 1),
        ({"answer": "text"}, [{"options": ["a", "b"], "answer": "b"}], (" a", " b"), 1),
        ({"option_columns": ["p", "q", "r"]}, [{"p": "x", "q": 7, "r": "", "answer": 1}], (" x", " 7"), 1),
        ({"options": ["no", "yes"]}, [{"answer": 1.0}], (" no", " yes"), 1),
        ({"options": ["no", "yes"], "answer": "text"}, [{"answer": "yes"}], (" no", " yes"), 1),
        ({"option": " {letter}"}, [{"options": ["a", "b"], "answer": 0}], (" A", " B"), 0),
        ({}, [{"options": '["a", "b"]', "answer": "0"}], (" a", " b"), 0),  # as a csv has them
    ],
)
def test_where_options_and_answers_stand(
    tmp_path: Path, how: dict[str, Any], rows: list[dict[str, Any]], shown: tuple[str, ...], answer: int
) -> None:
    file = jsonl(tmp_path / "all.jsonl", [{"question": "?", **row} for row in rows * 2])
    splits = MultipleChoice(train=file, validation=file, test=file, **how).load()
    assert question_of(splits.test.texts[0])[1:] == (shown, answer)


def test_a_question_may_list_its_options(files: dict[str, str]) -> None:
    splits = MultipleChoice(**files, question="{question}\n{choices}\nAnswer:", option=" {letter}").load()
    assert question_of(splits.test.texts[1])[0] == "Which is the sum?\nA. one\nB. twelve\nC. three\nAnswer:"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"options": ["yes"]}, "there must be 2 to 26 options, and there are 1"),
        ({"options": ["yes", ""]}, r"the cell of column 'options\[1\]' is empty"),
        ({"options": ["yes", None]}, r"the cell of column 'options\[1\]' is empty"),
        ({"options": ["yes", ["no"]]}, r"the cell of column 'options\[1\]' is a list, and no text"),
        ({"options": None}, r"the options \(column 'options'\) are missing"),
        ({"options": "yes, no"}, "are 'yes, no', and no list.*data.option_columns"),
        ({"options": "[yes, no]"}, "are no list in JSON"),
        ({"options": ["yes", "yes"]}, "'yes' stands there twice"),
        ({"answer": 2}, r"the answer 2 \(column 'answer'\) is no option. With data.answer=index it is one of 0, 1; "),
        ({"answer": "B"}, "the answer 'B'.*data.answer may be index, number, letter or text"),
        ({"answer": True}, "the answer True"),
        ({"answer": -1}, "the answer -1"),
        ({"answer": None}, "the answer .* is missing"),
        ({"question": " "}, "the cell of column 'question' is empty"),
    ],
)
def test_a_row_that_is_no_question_is_named(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    file = jsonl(tmp_path / "all.jsonl", [*ROWS[:2], {**ROWS[0], **row}])
    with pytest.raises(
        DataError, match=rf"^data.path: {tmp_path}/all.jsonl, row 3 \(line 3\): (?s:.*){said}"
    ) as caught:
        MultipleChoice(path=file).load()
    assert len(str(caught.value).splitlines()) == 1


def test_several_of_them_are_named_together(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "all.jsonl", [{**row, "answer": 9} for row in ROWS])
    with pytest.raises(DataError, match="4 of 4 rows cannot be used; the others:") as caught:
        MultipleChoice(path=file).load()
    assert "row 1 (line 1)" in str(caught.value)
    assert "row 4 (line 4)" in str(caught.value)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"option": " the"}, "has no slot"),
        ({"option": " {answer}"}, r"has the slot \{answer\}. It may have: \{option\}"),
        ({"question": "{"}, "data.question: '{' has a single brace"),
        ({"options": ["a"]}, "there must be 2 to 26"),
        ({"options": ["a", "a"]}, "each another one"),
        ({"options": ["a", "b"], "option_columns": ["a", "b"]}, "Give one of them"),
    ],
)
def test_a_config_that_says_no_options_is_refused(how: dict[str, Any], said: str) -> None:
    with pytest.raises((PeftlabError, ValueError), match=said):
        MultipleChoice(path="x", **how)


# -- tokens ----------------------------------------------------------------------------------------------


def made(text: str, *, right_only: bool = False, max_length: int = 99, **more: Any) -> Any:
    return ChoiceRows(language_tokenizer(**more), right_only=right_only).encode(text, max_length)


QUESTION = '["Is it true?",[" yes"," no"],1]'


def test_a_row_an_option_and_for_training_the_right_one() -> None:
    plain = plain_tokenizer()
    context = plain("Is it true?")["input_ids"]
    rows = made(QUESTION)
    for row, option in zip(rows, (" yes", " no"), strict=True):
        target = plain(option)["input_ids"]
        assert row.ids == context + target, "no end token stands behind an option"
        assert row.loss == [False] * len(context) + [True] * len(target)
    assert made(QUESTION, right_only=True) == [rows[1]]


def test_a_begin_token_stands_once_and_alone_before_an_empty_question() -> None:
    begin = plain_tokenizer().bos_token_id
    assert [row.ids.count(begin) for row in made(QUESTION, begins=True)] == [1, 1]
    assert [row.ids[0] for row in made('["",["x","y"],0]')] == [begin, begin]


def test_a_long_question_loses_its_beginning_and_an_option_nothing() -> None:
    whole, cut = made(QUESTION, merges=0)[0], made(QUESTION, merges=0, max_length=8)[0]
    assert (cut.ids, cut.loss, cut.cut) == (whole.ids[-8:], whole.loss[-8:], True)
    assert sum(cut.loss) == 4
    begun = made(QUESTION, merges=0, max_length=8, begins=True)[0]
    assert begun.ids == [plain_tokenizer(0).bos_token_id, *whole.ids[-7:]]
    with pytest.raises(RowError, match=r"' yes' has 4 tokens, which data\.max_length=4 leaves no room for"):
        made(QUESTION, merges=0, max_length=4)
