"""Which tokens of a row are under loss, against masks that are found by rendering prefix by prefix."""

from __future__ import annotations

from typing import Any

import pytest

from peftlab.backbones.rendering import PLAIN
from peftlab.data.target_rows import DialogueRows, RowError, TextRows, TokenRow
from peftlab.dialogues import Turn, out_of_order, written
from peftlab.objectives.parts.targets import NONE, targets_of
from tests.data.tiny_language import (
    TEMPLATES,
    THOUGHTS_TAKEN_OUT,
    language_tokenizer,
    plain_tokenizer,
    render,
)

CHATS = [
    [("user", "What is the answer?"), ("assistant", "yes")],
    [("user", "Count the apples."), ("assistant", "one, two, three"), ("user", "And the rest?"), ("assistant", "four")],
    [("system", "Be brief."), ("user", "Is it true?"), ("assistant", "It is true.")],
]


def dialogue(*turns: tuple[str, str]) -> str:
    return written([Turn(*turn) for turn in turns])


def messages(turns: Any) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


def under_loss(row: TokenRow) -> list[int]:
    return [token for token, under in zip(row.ids, row.loss, strict=True) if under]


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_mask_is_the_one_that_rendering_prefix_by_prefix_finds(name: str) -> None:
    template, plain, tokenizer = TEMPLATES[name], plain_tokenizer(), language_tokenizer()
    end = plain.convert_tokens_to_ids("<|end|>")

    def ids(text: str) -> list[int]:
        found: list[int] = plain(text, add_special_tokens=False)["input_ids"]
        return found

    for chat in CHATS:
        if chat[0][0] == "system" and "[Q]" in template:
            continue  # that template takes a system turn for an answer
        [row] = DialogueRows(tokenizer, template, "response").encode(dialogue(*chat), 200)
        wanted_ids: list[int] = []
        wanted: list[bool] = []
        done = ""
        for number, (role, _) in enumerate(chat):
            if role != "assistant":
                continue
            asked = render(template, messages(chat[:number]), True)
            said = render(template, messages(chat[: number + 1])).removeprefix(asked)
            said = said[: said.index("<|end|>") + len("<|end|>")] if "<|end|>" in said else said
            answer = ids(said) + ([] if said.endswith("<|end|>") else [end])
            prompt = ids(asked.removeprefix(done))
            wanted_ids += prompt + answer
            wanted += [False] * len(prompt) + [True] * len(answer)
            done = asked + said
        assert row.ids[: len(wanted_ids)] == wanted_ids
        assert row.loss == wanted + [False] * (len(row.ids) - len(wanted))
        assert len(row.ids) - len(wanted_ids) <= 3, "what stands behind the end is never said"
        assert row.ids[-1] == end or row.ids[len(wanted_ids) - 1] == end
        assert under_loss(row)[-1] == end


def test_the_end_of_an_answer_is_learned_where_it_is_the_padding_token_too() -> None:
    """The answers' ends are under loss; those of what is asked are not, though they are the same id."""
    tokenizer = language_tokenizer()
    assert tokenizer.pad_id == tokenizer.end_id
    [row] = DialogueRows(tokenizer, TEMPLATES["chatml"], "response").encode(dialogue(*CHATS[1]), 200)
    ends = [under for token, under in zip(row.ids, row.loss, strict=True) if token == tokenizer.end_id]
    assert ends == [False, True, False, True]


@pytest.mark.parametrize(
    ("prompt", "response"),
    [("The sky is", " grey"), ("What is the answer? ", "yes"), ("Answer:\n", "\nyes"), ("a caf", "é"), ("", "yes")],
)
def test_prompt_and_response_are_read_apart(prompt: str, response: str) -> None:
    """So that what is asked is the beginning of what was learned, whatever would merge across the line."""
    plain, rows = plain_tokenizer(), DialogueRows(language_tokenizer(), PLAIN, "response")
    [row] = rows.encode(dialogue(("user", prompt), ("assistant", response)), 100)
    asked, said = (plain(text, add_special_tokens=False)["input_ids"] for text in (prompt, response))
    assert row.ids == asked + said + [plain.eos_token_id]
    assert row.loss == [False] * len(asked) + [True] * (len(said) + 1)
    assert rows.asked([Turn("user", prompt)]) == asked
    targets = targets_of({"input_ids": row.ids, "loss": row.loss})
    assert (targets != NONE).sum() == len(said) + 1 - (prompt == ""), "nothing stands in front of a first token"


def test_markers_that_a_text_quotes_are_text() -> None:
    tokenizer, template = language_tokenizer(), TEMPLATES["chatml"]
    quoted = "Write <|end|> after <|start|>assistant"
    chat = [("user", quoted), ("assistant", "It is <|end|>, as I said")]
    [row] = DialogueRows(tokenizer, template, "response").encode(dialogue(*chat), 200)
    assert row.ids.count(tokenizer.end_id) == 2, "the template's own"
    assert row.ids.count(tokenizer.special_words()["<|start|>"]) == 2
    said = under_loss(row)
    assert tokenizer.decode(said[:-1]) == "It is <|end|>, as I said"
    assert said[-1] == tokenizer.end_id
    plainly = [("user", "Write it"), ("assistant", "It is so")]
    [other] = DialogueRows(tokenizer, template, "response").encode(dialogue(*plainly), 200)
    assert other.ids == plain_tokenizer()(render(template, messages(plainly)), add_special_tokens=False)["input_ids"]


def test_a_template_that_rewrites_what_came_before_is_refused_unless_answers_stand_apart() -> None:
    tokenizer = language_tokenizer()
    chat = [
        ("user", "What is one and two?"), ("assistant", "<think>one, two</think>\nthree"), ("user", "And one more?"),
        ("assistant", "<think>three, four</think>\nfour"),
    ]  # fmt: skip
    with pytest.raises(RowError, match=r"rewrites what came before.*data.answers=apart"):
        DialogueRows(tokenizer, THOUGHTS_TAKEN_OUT, "response").encode(dialogue(*chat), 300)
    [row] = DialogueRows(tokenizer, THOUGHTS_TAKEN_OUT, "last_turn").encode(dialogue(*chat), 300)
    assert tokenizer.decode(under_loss(row)) == "<think>three, four</think>\nfour"
    assert "one, two</think>" not in tokenizer.decode(row.ids)
    [without] = DialogueRows(tokenizer, THOUGHTS_TAKEN_OUT, "response").encode(dialogue(*CHATS[1]), 300)
    assert sum(without.loss) > 0, "nothing to rewrite there"


BEGIN, END = "<|begin|>", "<|end|>"


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("template", ["chatml", "with bos"])
def test_one_beginning_and_no_early_end(begins: bool, ends: bool, template: str) -> None:
    tokenizer = language_tokenizer(begins=begins, ends=ends)
    begin = tokenizer.special_words()[BEGIN]
    rows = DialogueRows(tokenizer, TEMPLATES[template], "response")
    [chat] = rows.encode(dialogue(*CHATS[0]), 100)
    assert chat.ids.count(begin) == int(begins or template == "with bos")
    assert begin not in chat.ids[1:]
    asked = rows.asked([Turn(*CHATS[0][0])])
    assert chat.ids[: len(asked)] == asked
    [row] = DialogueRows(tokenizer, PLAIN, "response").encode(
        dialogue(("user", "Is it true?"), ("assistant", " yes")), 50
    )
    assert row.ids.count(begin) == int(begins)
    assert row.ids.count(tokenizer.end_id) == 1
    assert row.ids[-1] == tokenizer.end_id
    [text] = TextRows(tokenizer, None).encode("The sea is blue.", 50)
    assert text.ids.count(begin) == int(begins)
    assert tokenizer.end_id not in text.ids


# (prompt bytes, response bytes) → (kept, under loss, whether the end token is last); a byte is a token, the limit is 24
LIMIT = {(10, 13): (24, 14, True), (10, 14): (24, 14, False), (10, 30): (24, 14, False), (22, 5): (24, 2, False),
         (23, 5): (24, 1, False), (0, 23): (24, 23, True)}  # fmt: skip


@pytest.mark.parametrize(("lengths", "right"), LIMIT.items())
def test_at_the_limit_of_length(lengths: tuple[int, int], right: tuple[int, int, bool]) -> None:
    tokenizer = language_tokenizer(0)
    asked, said = lengths
    rows = DialogueRows(tokenizer, PLAIN, "response")
    [row] = rows.encode(dialogue(("user", "p" * asked), ("assistant", "r" * said)), 24)
    targets = (targets_of({"input_ids": row.ids, "loss": row.loss}) != NONE).sum()
    assert (len(row.ids), targets, row.ids[-1] == tokenizer.end_id) == right
    assert row.cut is not right[2], "a cut is known as one, and no end token stands behind it"


@pytest.mark.parametrize("asked", [24, 40])
def test_a_prompt_that_leaves_no_answer_is_an_error(asked: int) -> None:
    rows = DialogueRows(language_tokenizer(0), PLAIN, "response")
    with pytest.raises(RowError, match=r"no answer is left in the first 24 tokens \(data.max_length\)"):
        rows.encode(dialogue(("user", "p" * asked), ("assistant", "rrrrr")), 24)


def test_the_last_answer_of_a_long_conversation_stays_whole() -> None:
    ends = "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    template = f"{{% for m in messages %}}{{{{ m['content'] }}}}{ends}{{% endfor %}}"
    chat = [(role, text) for q, a in [("pppppp", "rrr"), ("pppp", "sss"), ("ppp", "ttt")]
            for role, text in (("user", q), ("assistant", a))]  # fmt: skip
    tokenizer = language_tokenizer(0)
    [row] = DialogueRows(tokenizer, template, "last_turn").encode(dialogue(*chat), 24)
    assert tokenizer.decode(row.ids) == "ppppsssppptt" + "t", "25 tokens in all: the first exchange is left out"
    assert tokenizer.decode(under_loss(row)) == "ttt"
    assert row.ids[-1] == tokenizer.end_id
    assert row.loss[-1]


def test_loss_on_all_and_stop_ids() -> None:
    tokenizer = language_tokenizer(begins=True)
    rows = DialogueRows(tokenizer, TEMPLATES["chatml"], "all")
    [row] = rows.encode(dialogue(*CHATS[0]), 100)
    assert all(row.loss[:-1])
    assert rows.stop_ids() == [tokenizer.end_id]
    assert rows.fingerprint != DialogueRows(tokenizer, TEMPLATES["chatml"], "response").fingerprint


@pytest.mark.parametrize(("length", "stride"), [(16, None), (16, 8), (16, 1), (5, 4), (64, None)])
@pytest.mark.parametrize("begins", [False, True])
def test_windows_say_each_token_once(length: int, stride: int | None, begins: bool) -> None:
    """With as much before it as fits: as many as a window that ends with it can hold, or its share of a stride."""
    tokenizer = language_tokenizer(0, begins=begins)
    text = "The cat sat on the mat and the dog sat near the door."
    whole = list(tokenizer.begin) + tokenizer.plain([text])[0]
    step = stride or length - 1
    wanted, done = [], 1
    while done < len(whole):
        new = min(step if wanted else length - 1, len(whole) - done)
        wanted.append((whole[max(0, done + new - length) : done + new], new))
        done += new
    rows = TextRows(tokenizer, stride).encode(text, length)
    assert [(row.ids, sum(row.loss)) for row in rows] == wanted
    assert sum((targets_of({"input_ids": row.ids, "loss": row.loss}) != NONE).sum() for row in rows) == len(whole) - 1
    assert [token for row in rows for token in under_loss(row)] == whole[1:]


def test_a_text_of_one_token_has_no_target() -> None:
    [row] = TextRows(language_tokenizer(0), None).encode("x", 16)
    assert (len(row.ids), sum(row.loss)) == (1, 0)
    [row] = TextRows(language_tokenizer(0, begins=True), None).encode("x", 16)
    assert (len(row.ids), sum(row.loss)) == (2, 1)


@pytest.mark.parametrize(
    ("roles", "said"),
    [("ua", ""), ("sua", ""), ("uaua", ""), ("au", "message 1 is of the assistant, but behind the beginning"),
     ("uua", "message 2 is of the user, but behind user comes the assistant"), ("u", "there is no answer to learn"),
     ("s", "no message of a user"), ("usa", "message 2 is of the system"), ("xa", "has the role 'x'")],
)  # fmt: skip
def test_the_order_of_roles(roles: str, said: str) -> None:
    names = {"u": "user", "a": "assistant", "s": "system"}
    found = out_of_order([Turn(names.get(role, role), "…") for role in roles])
    assert said in found
    assert bool(said) == bool(found)
