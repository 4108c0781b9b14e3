"""Rows that are longer than data.max_length: how long a row is, and what becomes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from peftlab.backbones.tokenizers import ByteTokenizer
from peftlab.data.base import DataSet
from peftlab.data.instructions import Instructions
from peftlab.data.module import SPLITS, TextDataModule, content_hash
from peftlab.data.multiple_choice import MultipleChoice
from peftlab.data.too_long import within_length
from peftlab.dialogues import turns_of
from peftlab.errors import DataError
from tests.data.tiny_language import CHATML, language_tokenizer

SIZES = {"train": [9, 10, 11, 30], "validation": [10, 25], "test": [9, 11]}
"""Tokens of each row: the begin, the bytes of a prompt, one of the answer, and the end."""


def write(folder: Path, rows: dict[str, list[Any]]) -> dict[str, str]:
    for split, of in rows.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in of), encoding="utf-8")
    return {split: str(folder / f"{split}.jsonl") for split in rows}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    rows = {split: [{"prompt": "p" * (n - 3), "response": "a"} for n in of] for split, of in SIZES.items()}
    return write(tmp_path, rows)


def lengths(config: DataSet, tokenizer: Any) -> dict[str, list[int]]:
    """Of the rows that are read, in order."""
    data = TextDataModule(config, within_length(config, config.load(), tokenizer), tokenizer, 0)
    return {split: data.tokenized(split).lengths.tolist() for split in SPLITS}


def test_what_fits_exactly_stays_and_a_test_row_is_never_left_out(files: dict[str, str]) -> None:
    config = Instructions(**files, chat_template="none", max_length=10, too_long="leave_out")
    # of the test row of 11 tokens, the answer is left, and its end is not
    assert lengths(config, ByteTokenizer()) == {"train": [9, 10], "validation": [10], "test": [9, 10]}
    loaded = config.load()
    used = within_length(config, loaded, ByteTokenizer())
    assert used.provenance["too_long"] == {"train": 2, "validation": 1, "test": 1}
    assert used.provenance["rows"] == {"train": 2, "validation": 1, "test": 2}
    assert used.train_kind.endswith(", without 2 rows of more than 10 tokens")
    assert (used.test, used.test_kind, used.hash_as_loaded) == (loaded.test, loaded.test_kind, content_hash(loaded))


def test_a_test_row_without_an_answer_left_is_an_error(tmp_path: Path) -> None:
    row = {"prompt": "p" * 7, "response": "a"}
    files = write(tmp_path, {"train": [row] * 3, "validation": [row], "test": [row, row | {"prompt": "p" * 9}]})
    config = Instructions(**files, chat_template="none", max_length=10, too_long="leave_out")
    with pytest.raises(DataError, match=r"test\.jsonl, row 2 .*no answer is left in the first 10 tokens"):
        lengths(config, ByteTokenizer())


def test_rows_too_long_are_refused_by_name(files: dict[str, str], tmp_path: Path) -> None:
    config = Instructions(**files, chat_template="none", max_length=10, too_long="refuse")
    with pytest.raises(DataError) as caught:
        lengths(config, ByteTokenizer())
    *named, last = str(caught.value).splitlines()
    assert named == [
        f"{tmp_path}/{split}.jsonl, row {row} (line {row}): {tokens} tokens, and data.max_length=10."
        for split, row, tokens in (("train", 3, 11), ("train", 4, 30), ("validation", 2, 25), ("test", 2, 11))
    ]
    assert "Set data.max_length to 30, or data.too_long to leave_out" in last
    assert (
        lengths(Instructions(**files, chat_template="none", max_length=30, too_long="refuse"), ByteTokenizer()) == SIZES
    )


def test_what_a_template_writes_behind_the_last_end_makes_no_row_too_long(tmp_path: Path) -> None:
    row = {"prompt": "Is it true?", "response": "It is true."}
    files = write(tmp_path, {split: [row] for split in SPLITS})
    tokenizer = language_tokenizer(template=CHATML)
    whole = Instructions(**files, max_length=1_000)
    [tokens] = lengths(whole, tokenizer)["train"]
    [behind] = [len(tokenizer.plain(["\n"])[0])]
    limit = tokens - behind  # as CHATML writes a line break behind the end
    fits = Instructions(**files, max_length=limit, too_long="refuse")
    assert lengths(fits, tokenizer)["train"] == [limit]
    with pytest.raises(DataError, match=f"{limit} tokens, and data.max_length={limit - 1}"):
        lengths(Instructions(**files, max_length=limit - 1, too_long="refuse"), tokenizer)


def test_a_conversation_that_would_lose_its_first_exchange_is_too_long(tmp_path: Path) -> None:
    turns = [("user", "aaaa"), ("assistant", "bb"), ("user", "cccc"), ("assistant", "dd")]
    long = {"messages": [{"role": role, "content": content} for role, content in turns]}
    files = write(tmp_path, {split: [long, {"messages": long["messages"][2:]}] for split in SPLITS})
    how: dict[str, Any] = {"messages_column": "messages", "chat_template": "none", "loss_on": "last_turn"}
    config = Instructions(**files, **how, max_length=10, too_long="leave_out")
    used = within_length(config, config.load(), ByteTokenizer())
    assert [len(turns_of(text)) for text in used.train.texts] == [2]
    assert used.provenance["too_long"] == {"train": 1, "validation": 1, "test": 1}


def test_a_question_is_as_long_as_its_longest_option_that_is_read(tmp_path: Path) -> None:
    """Of training rows the right option alone is read, of others all."""
    row = {"question": "qqqq", "options": ["yes", "certainly"], "answer": 0}
    files = write(tmp_path, {"train": [row, row | {"answer": 1}], "validation": [row] * 2 + [
        row | {"options": ["yes", "no"]}], "test": [row]})  # fmt: skip
    config = MultipleChoice(**files, max_length=10, too_long="leave_out")
    used = within_length(config, config.load(), ByteTokenizer())
    assert used.provenance["too_long"] == {"train": 1, "validation": 2, "test": 1}
    assert used.provenance["rows_by_label"]["train"] == {"A": 1, "B": 0}


def test_a_split_of_rows_too_long_alone_is_refused(files: dict[str, str]) -> None:
    config = Instructions(**files, chat_template="none", max_length=9, too_long="leave_out")
    with pytest.raises(DataError, match=r"leaves no validation row: all 2 have more than data\.max_length=9 .* 10\."):
        within_length(config, config.load(), ByteTokenizer())
