"""Rows of instructions and plain texts, as files have them; what cannot be used is named by file and row."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from peftlab.backbones.tokenizers import ByteTokenizer
from peftlab.composition import composed
from peftlab.config import check
from peftlab.data.instructions import Instructions
from peftlab.data.module import TextDataModule
from peftlab.data.plain_text import PlainText
from peftlab.dialogues import Turn, turns_of
from peftlab.errors import BackboneError, ConfigError, DataError
from peftlab.records.identity import run_key
from tests.data.tiny_language import CHATML, language_tokenizer


def write(folder: Path, rows: Sequence[Any], name: str = "rows.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


PAIRS = [{"prompt": f"What is {n}?", "response": f"It is {n}."} for n in range(10)]


def asked(text: str) -> str:
    return turns_of(text)[0].content


def test_pairs_are_dialogues_of_two_turns(tmp_path: Path) -> None:
    splits = Instructions(path=write(tmp_path, PAIRS)).load()
    texts = [*splits.train.texts, *splits.validation.texts, *splits.test.texts]
    assert sorted(map(asked, texts)) == [row["prompt"] for row in PAIRS]
    assert turns_of(splits.test.texts[0])[1].role == "assistant"
    assert splits.train.places is not None
    row = int(asked(splits.train.texts[3]).removeprefix("What is ").removesuffix("?")) + 1
    assert splits.train.places[3] == f"{tmp_path}/rows.jsonl, row {row} (line {row})"
    assert splits.label_names == ("nats", "tokens", "correct")
    with_other_names = [{"question": row["prompt"], "answer": row["response"]} for row in PAIRS]
    named = Instructions(path=write(tmp_path, with_other_names), prompt_column="question", response_column="answer")
    assert named.load().train.texts == splits.train.texts


CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "1"}, {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": "2"}]  # fmt: skip


def test_messages_of_jsonl_and_parquet(tmp_path: Path) -> None:
    rows = [{"messages": CHAT}] * 5
    there = write(tmp_path, rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    for path in (there, str(tmp_path / "rows.parquet")):
        splits = Instructions(path=path, messages_column="messages").load()
        assert turns_of(splits.train.texts[0]) == [Turn(m["role"], m["content"]) for m in CHAT]


def test_answers_apart_are_rows_of_their_own_on_one_side(tmp_path: Path) -> None:
    roles = ("user", "assistant") * 2
    chats = [[{"role": role, "content": f"{n} {part}"} for part, role in enumerate(roles)] for n in range(10)]
    rows = [{"messages": chat} for chat in chats]
    splits = Instructions(path=write(tmp_path, rows), messages_column="messages", answers="apart").load()
    sides = [{asked(text).split()[0] for text in side.texts} for side in (splits.train, splits.validation, splits.test)]
    assert sum(map(len, sides)) == 10, "no conversation is on two sides"
    assert len(splits.train) == 2 * len(sides[0])
    assert [len(turns_of(text)) for text in splits.train.texts[:2]] == [2, 4]
    assert splits.train.places is not None
    assert splits.train.places[1].endswith("answer 2")
    assert splits.provenance["rows"]["train"] == len(splits.train)


TEMPLATE = {
    "prompt": "{{Q}} {text}\nIt is about",
    "response": " {label}",
    "words": {"label": {0: "sports", 1: "science"}},
}


def test_a_template_makes_instructions_of_labelled_rows(tmp_path: Path) -> None:
    rows = [{"text": f"text {n}", "label": n % 4 == 0} for n in range(40)]
    rows = [{**row, "label": int(row["label"])} for row in rows]
    splits = Instructions(path=write(tmp_path, rows), template=TEMPLATE, limit_test=4).load()
    first = turns_of(splits.train.texts[0])
    assert first[0].content.startswith("{Q} text ")
    assert first[0].content.endswith("\nIt is about")
    assert first[1].content in (" sports", " science")
    assert splits.provenance["rows_by_label"]["test"] == {"0": 3, "1": 1}, "each label keeps its share"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ({"prompt": "{text}", "response": "yes"}, "has no slot, so that every row would have the same answer"),
        ({"prompt": "{text}"}, "data.template.response must be a text"),
        ({"prompt": "{text", "response": "{label}"}, "has a single brace"),
        ({"prompt": "{}", "response": "{label}"}, "an empty slot"),
        ({"prompt": "{text}", "response": "{label}", "word": {}}, "Did you mean 'words'?"),
        ({"prompt": "{text}", "response": "{label}", "words": {"lable": {0: "a"}}}, "Did you mean 'label'?"),
        ({"prompt": "{text}", "response": "{label}", "words": ["a"]}, "must map columns to words"),
    ],
)
def test_templates_that_say_nothing_are_refused(template: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=r"data\.template") as caught:
        Instructions(path="x.jsonl", template=template)
    assert said in str(caught.value)


GOOD = {"prompt": "a", "response": "b"}
FAULTS: list[tuple[Any, dict[str, Any], str]] = [
    ({"prompt": "a", "response": " "}, {}, "row 2 (line 2): the response is empty"),
    ({"prompt": "a", "response": None}, {}, "row 2 (line 2): the response (column 'response') is missing"),
    ({"prompt": 5, "response": "b"}, {}, "row 2 (line 2): the prompt (column 'prompt') is no text but 5 (int)"),
    ({"prompt": "a"}, {}, "row 2 (line 2): there is no column 'response'"),
    ({"text": "a", "label": 7}, {"template": TEMPLATE}, "row 2 (line 2): data.template.words.label has no word for 7"),
    ({"text": "", "label": 0}, {"template": TEMPLATE}, "row 2 (line 2): the cell of column 'text' is empty"),
]


@pytest.mark.parametrize(("row", "how", "said"), FAULTS)
def test_rows_that_cannot_be_used_are_named(tmp_path: Path, row: Any, how: dict[str, Any], said: str) -> None:
    good = {"text": "a", "label": 0} if how else GOOD
    with pytest.raises(DataError) as caught:
        Instructions(path=write(tmp_path, [good, row, good]), **how).load()
    assert said in str(caught.value)
    assert "rows.jsonl" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([CHAT[1], CHAT[3]], "message 2 is of the user, but behind user comes the assistant"),
        ([CHAT[1]], "the last message is of the user, so there is no answer to learn"),
        ([CHAT[1], {"role": "assistant", "content": ""}], "the response is empty"),
        ([CHAT[1], {"role": "assistant"}], "message 2 (key 'messages') has no role and content"),
        ([], "the messages (key 'messages') are empty"),
        ("text", "the messages (key 'messages') are a str"),
    ],
)
def test_messages_out_of_order(tmp_path: Path, messages: Any, said: str) -> None:
    rows = [{"messages": CHAT[1:3]}, {"messages": messages}]
    with pytest.raises(DataError) as caught:
        Instructions(path=write(tmp_path, rows), messages_column="messages").load()
    assert f"row 2 (line 2): {said}" in str(caught.value)


def test_many_faults_are_one_message(tmp_path: Path) -> None:
    rows = [GOOD, *[{"prompt": "a", "response": ""}] * 50]
    with pytest.raises(DataError) as caught:
        Instructions(path=write(tmp_path, rows)).load()
    assert "50 of 51 rows cannot be used" in str(caught.value)
    assert "and 30 more" in str(caught.value)


def module(config: Any, tokenizer: Any) -> TextDataModule:
    return TextDataModule(config, config.load(), tokenizer, 0)


def test_prompts_that_leave_no_room_name_file_and_row_once_they_are_tokens(tmp_path: Path) -> None:
    rows = [*PAIRS, *[{"prompt": "p" * 60, "response": "yes"}] * 30]
    config = Instructions(path=write(tmp_path, rows), chat_template="none", max_length=40)
    with pytest.raises(DataError) as caught:
        module(config, ByteTokenizer()).tokenized("train")
    first, second, *_ = str(caught.value).splitlines()
    assert f"{tmp_path}/rows.jsonl, row 1" in first
    assert "no answer is left in the first 40 tokens (data.max_length)" in first
    assert "rows cannot be used; the others:" in second
    assert len(str(caught.value).splitlines()) < 8


def test_what_is_cut_is_counted_and_the_cache_is_read_again(tmp_path: Path) -> None:
    rows = [{"prompt": "ab", "response": "r" * n} for n in (2, 2, 2, 30, 30, 2)]
    config = Instructions(path=write(tmp_path, rows), chat_template="none", max_length=10, val_fraction=0.3)
    first, again = module(config, ByteTokenizer()), module(config, ByteTokenizer())
    facts = first.token_facts()
    assert sum(of["cut"] for of in facts.values()) == 2
    # [CLS] a b r r [SEP]: three targets; of those that are cut seven of ten places
    assert sum(of["targets"] for of in facts.values()) == 4 * 3 + 2 * 7
    assert again.token_facts() == facts
    mine, theirs = first.tokenized("train"), again.tokenized("train")
    assert all((mine[i]["input_ids"] == theirs[i]["input_ids"]).all() for i in range(len(mine)))
    assert all((mine[i]["loss"] == theirs[i]["loss"]).all() for i in range(len(mine)))
    (mine.folder / "loss.npy").write_bytes(b"damaged")
    assert module(config, ByteTokenizer()).token_facts() == facts, "made anew"


def test_chat_templates_of_the_tokenizer_of_the_config_and_none(tmp_path: Path) -> None:
    path = write(tmp_path, PAIRS)
    with pytest.raises(DataError, match=r"data.chat_template=tokenizer: this backbone's tokenizer has none"):
        Instructions(path=path).row_encoder(ByteTokenizer())
    with pytest.raises(DataError, match="nor a file that can be read"):
        Instructions(path=path, chat_template="no-such-file.jinja").identity_values()
    file = tmp_path / "chat.jinja"
    file.write_text(CHATML + "\n", encoding="utf-8")
    tokenizer = language_tokenizer(template=CHATML)
    encoders = [
        Instructions(path=path, chat_template=given).row_encoder(tokenizer)
        for given in ("tokenizer", CHATML, str(file))
    ]
    assert len({encoder.fingerprint for encoder in encoders}) == 1
    identities = [Instructions(path=path, chat_template=given).identity_values() for given in (CHATML, str(file))]
    assert identities[0] == identities[1] == {"chat_template": CHATML}
    broken = Instructions(path=path, chat_template="{% for m in messages %}").row_encoder(tokenizer)
    with pytest.raises(DataError, match="the chat template cannot write it"):
        broken.encode(Instructions(path=path).load().train.texts[0], 99)


def test_texts_in_windows(tmp_path: Path) -> None:
    path = write(tmp_path, [{"text": "x" * n} for n in (3, 50, 7, 20, 5)])
    config = PlainText(path=path, max_length=16)
    found = module(config, language_tokenizer(0))
    facts = found.token_facts()
    assert sum(of["targets"] for of in facts.values()) == 3 + 50 + 7 + 20 + 5 - 5
    rows = found.tokenized("train")
    texts = len(found.splits.train)
    assert sum(rows[i]["texts"] for i in range(len(rows))) == texts
    with pytest.raises(ValueError, match=r"data\.stride=16 is not below data\.max_length=16"):
        PlainText(path=path, max_length=16, stride=16)


def test_texts_behind_a_begin_token_that_the_tokenizer_does_not_write(tmp_path: Path) -> None:
    """Its own, or else the end token; the first token of a text is then a target, and nothing else changes."""
    path = write(tmp_path, [{"text": "The cat sat on the mat."}])
    for tokenizer, first in (
        (language_tokenizer(0), "<|begin|>"),
        (language_tokenizer(0, begins=True), "<|begin|>"),
        (language_tokenizer(0, bos=None), "<|end|>"),
    ):
        encoder = PlainText(path=path, begin="bos").row_encoder(tokenizer)
        rows, text = encoder.encode("The cat sat.", 6), tokenizer.plain(["The cat sat."])[0]
        assert rows[0].ids == [tokenizer.special_words()[first], *text[:5]]
        assert sum(sum(row.loss) for row in rows) == len(text)
        assert encoder.fingerprint != PlainText(path=path).row_encoder(tokenizer).fingerprint
    with pytest.raises(BackboneError, match=r"data\.begin=bos: the tokenizer has neither"):
        PlainText(path=path, begin="bos").row_encoder(language_tokenizer(0, bos=None, eos=None, pad="<|start|>"))


LANGUAGE = ["data.path=x.jsonl", "backbone=tiny", "logger=none"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data=instructions", "data.objective=classification"], "data.objective=classification reads labels"),
        (["data=text_files", "data.objective=causal_lm"], "this data set has labelled rows. Use data=instructions"),
        (["data=instructions", "data.truncation=head_and_tail"], "cut out the middle of a dialogue"),
        (["data=instructions", "trainer.label_smoothing=0.1"], "has no meaning for a language modelling"),
        (["data=instructions", "trainer.monitor=accuracy"], "it must be one of loss, perplexity, token_accuracy"),
        (
            ["data=instructions", "data.packing=true", "trainer.cuda_graphs=true"],
            "beside data.packing=true",
        ),
    ],
)
def test_configs_that_do_not_fit(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(composed([*LANGUAGE, *words]))
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_chat_template_in_a_file_of_its_own_is_part_of_the_key(tmp_path: Path) -> None:
    """Of language models alone: keys of classifiers in the same folder know nothing of it."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    write(tmp_path, PAIRS, "x.jsonl")
    labelled = write(tmp_path, [{"text": "a", "label": 0}, {"text": "b", "label": 1}], "labelled.jsonl")
    model = ["backbone=hf", f"backbone.name_or_path={folder}", "logger=none"]

    def keys() -> tuple[str, str]:
        language = ["data=instructions", f"data.path={tmp_path}/x.jsonl", *model]
        return run_key(check(composed(language))), run_key(
            check(composed(["data=text_files", f"data.path={labelled}", *model]))
        )

    before = keys()
    (folder / "chat_template.jinja").write_text(CHATML)
    after = keys()
    assert before[0] != after[0]
    assert before[1] == after[1]


@pytest.mark.parametrize(
    ("more", "key"),
    [
        ({"template": {"prompt": "{text}\\nTopic:", "response": "{label}"}}, "data.template.prompt has \\n in it"),
        ({"template": {"prompt": "{text}", "response": "\\t{label}"}}, "data.template.response has \\t in it"),
        ({"generate": {"max_new_tokens": 4, "stop": ["\\n"]}}, "data.generate.stop has \\n in it"),
        ({"template": {"prompt": "{text}\nTopic:", "response": "{label}"}}, None),
        ({"chat_template": "{{ messages[0]['content'] + '\\n' }}"}, None),
    ],
)
def test_line_breaks_that_are_two_signs_are_told(
    tmp_path: Path, more: dict[str, Any], key: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Hydra leaves them between quotes as they are: the model would read a backslash and an n."""
    rows = [{"text": f"a {number}", "label": "b", "prompt": f"a {number}", "response": "b"} for number in range(20)]
    Instructions(path=write(tmp_path, rows), **more).load()
    said = [record.getMessage() for record in caplog.records if "as two signs" in record.getMessage()]
    assert [text.startswith(key) for text in said] == ([] if key is None else [True])
