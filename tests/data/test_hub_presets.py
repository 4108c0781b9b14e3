"""Sets of the hub for language models: each preset against a server that speaks the hub's protocol, with rows of the
columns that the set has."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from peftlab.audit.pinned import pinned, pins
from peftlab.composition import checked
from peftlab.data.dialogue_template import DialogueTemplate
from peftlab.errors import ConfigError
from peftlab.records.identity import run_key
from tests.data.hub_server import FakeHub

SOURCE = Path(__file__).resolve().parents[2] / "src"
LOAD = """
import json, sys
from dataclasses import replace
from peftlab.choices import question_of
from peftlab.composition import checked
from peftlab.data.multiple_choice import MultipleChoice
from peftlab.data.plain_text import PlainText
from peftlab.dialogues import turns_of
from peftlab.errors import DataError

def plainly(data, text):
    if isinstance(data, PlainText):
        return text
    if isinstance(data, MultipleChoice):
        return list(question_of(text))
    return [turn.content for turn in turns_of(text)]

found = {}
for typed in json.loads(sys.argv[1]):
    data = checked(typed + ["backbone=gpt2"]).data
    try:
        splits = data.load()
    except DataError as error:
        found[" ".join(typed)] = {"error": str(error)}
        continue
    rows = {name: [plainly(data, text) for text in getattr(splits, name).texts] for name in ("train", "test")}
    found[" ".join(typed)] = rows | {"facts": splits.provenance, "kind": splits.test_kind}
print(json.dumps(found))
"""


def parquet(rows: list[dict[str, Any]]) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), stream)
    return stream.getvalue()


def rows(count: int, **cells: Any) -> list[dict[str, Any]]:
    """``{}`` of each text is the row's number."""
    return [
        {name: cell.replace("{}", str(row)) if isinstance(cell, str) else cell for name, cell in cells.items()}
        for row in range(count)
    ]


ARC = {"question": "Q{}", "choices": {"text": ["x", "y", "z", "w"], "label": ["1", "2", "3", "4"]}, "answerKey": "3"}
SETS: dict[str, tuple[str, dict[str, list[dict[str, Any]]]]] = {
    "openai/gsm8k": ("main", {
        "train": rows(12, question="How many {}?", answer="2+2=<<2+2=4>>4\n#### {}"),
        "test": rows(3, question="And {}?", answer="So\n#### {}")}),
    "tatsu-lab/alpaca": ("", {"train": [
        *rows(40, instruction="Name {}.", input="", output="o{}", text="t"),
        *rows(40, instruction="Sum.", input="{} + 1", output="o{}", text="t"),
        *rows(2, instruction="None {}.", input="", output="", text="t")]}),
    "tuetschek/e2e_nlg": ("", {
        split: rows(n, meaning_representation="name[A {}], food[F]", human_reference="A {} has F.")
        for split, n in (("train", 6), ("validation", 2), ("test", 2))}),
    "EleutherAI/wikitext_document_level": ("wikitext-2-raw-v1", {
        split: rows(2, page=" \n = P {} = \n") for split in ("train", "validation", "test")}),
    "zwhe99/commonsense_170k": ("", {
        "train": rows(400, instruction="I{}", input="", output="the correct answer is true", answer="true")}),
    "aps/super_glue": ("boolq", {
        **{s: rows(n, question="is it {}", passage="p", idx=1, label=1) for s, n in (("train", 10), ("validation", 2))},
        "test": rows(2, question="hidden", passage="p", idx=1, label=-1)}),
    "baber/piqa": ("", {s: rows(10, goal="G{}", sol1="a", sol2="b", label=1) for s in ("train", "validation")}),
    "lighteval/siqa": ("", {s: rows(10, context="C.", question="Q{}?", answerA="a", answerB="b", answerC="c", label="3")
        for s in ("train", "validation")}),
    "Rowan/hellaswag": ("", {
        **{s: rows(10, ind=1, activity_label="L", ctx="c {}", endings=["d", "e", "f", "g"], label="2")
           for s in ("train", "validation")},
        "test": rows(2, ind=1, activity_label="L", ctx="c", endings=["d", "e", "f", "g"], label="")}),
    "allenai/winogrande": ("winogrande_xl", {
        s: rows(10, sentence="S _ {}", option1="a", option2="b", answer="2") for s in ("train", "validation")}),
    "allenai/ai2_arc": ("ARC-Easy", {s: rows(10, id="i", **ARC) for s in ("train", "validation", "test")}),
    "allenai/openbookqa": ("main", {s: rows(10, id="i", question_stem="Q{}", choices=ARC["choices"] | {
        "label": ["A", "B", "C", "D"]}, answerKey="B") for s in ("train", "validation", "test")}),
}  # fmt: skip
PRESETS = (
    "gsm8k", "alpaca", "e2e_nlg", "wikitext2", "commonsense_170k", "boolq", "piqa", "siqa", "hellaswag", "winogrande",
    "arc_easy", "openbookqa",
)  # fmt: skip
WRAPPED = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request. \n\n"
    "                ### Instruction:\n                {}\n\n                ### Response:\n                "
)


def card(config: str, splits: list[str], folder: str) -> bytes:
    files = "".join(f"  - {{split: {name}, path: {folder}{name}.parquet}}\n" for name in splits)
    return f"---\nconfigs:\n- config_name: {config or 'default'}\n  data_files:\n{files}---\n".encode()


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, Any], dict[str, str]]]:
    """What each preset reads, and the commit of each set."""
    with FakeHub() as hub:
        commits = {}
        for name, (config, splits) in SETS.items():
            folder = f"{config or 'data'}/"
            files = {f"{folder}{split}.parquet": parquet(of) for split, of in splits.items()}
            readme = {"README.md": card(config, list(splits), folder)}
            if name == "tuetschek/e2e_nlg":  # as the hub's converter lays it out, beside a script on the main branch
                files, readme = {f"default/{split}/0000.parquet": parquet(of) for split, of in splits.items()}, {}
                hub.add_dataset(name, {"e2e_nlg.py": b"raise SystemExit", "README.md": b""})
                commits[name] = hub.add_dataset(name, files, revision="refs/convert/parquet")
                continue
            commits[name] = hub.add_dataset(name, readme | files)
        typed = [[f"data={preset}"] for preset in PRESETS]
        typed += [["data=gsm8k", "data.template.prompt='{problem}'"], ["data=gsm8k", "data.hub.config=mian"]]
        home = tmp_path_factory.mktemp("hf-home")
        environment = hub.environment(home, PYTHONPATH=str(SOURCE), PEFTLAB_CACHE=str(home / "cache"))
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", LOAD, json.dumps(typed)],
            env=environment, capture_output=True, text=True, timeout=240,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        yield json.loads(done.stdout.splitlines()[-1]), commits


TESTED: dict[str, Any] = {
    "gsm8k": ["Question: And 0?\nAnswer:", " So\n#### 0"],
    "e2e_nlg": ["name[A 0], food[F]\n", "A 0 has F."],
    "wikitext2": " \n = P 0 = \n",
    "boolq": [
        WRAPPED.format("Please answer the following question with true or false, question: is it 0?\n\n"
                       "Answer format: true/false"),
        ["the correct answer is false", "the correct answer is true"], 1],
    "piqa": [
        WRAPPED.format("Please choose the correct solution to the question: G0\n\nSolution1: a\n\nSolution2: b\n\n"
                       "Answer format: solution1/solution2"),
        ["the correct answer is solution1", "the correct answer is solution2"], 1],
    "siqa": [
        WRAPPED.format("Please choose the correct answer to the question: C. Q0?\n\nAnswer1: a\n\nAnswer2: b\n\n"
                       "Answer3: c\n\nAnswer format: answer1/answer2/answer3"),
        [f"the correct answer is answer{n}" for n in (1, 2, 3)], 2],
    "hellaswag": [
        WRAPPED.format("Please choose the correct ending to complete the given sentence: L: c 0\n\nEnding1: d Ending2: "
                       "e Ending3: f Ending4: g\n\nAnswer format: ending1/ending2/ending3/ending4"),
        [f"the correct answer is ending{n}" for n in (1, 2, 3, 4)], 2],
    "winogrande": [
        WRAPPED.format("Please choose the correct answer to fill in the blank to complete the given sentence: S _ 0\n\n"
                       "Option1: a Option2: b\n\nAnswer format: option1/option2"),
        ["the correct answer is option1", "the correct answer is option2"], 1],
    "arc_easy": [
        WRAPPED.format("Please choose the correct answer to the question: Q0\n\nAnswer1: x Answer2: y Answer3: z "
                       "Answer4: w\n\nAnswer format: answer1/answer2/answer3/answer4"),
        [f"the correct answer is answer{n}" for n in (1, 2, 3, 4)], 2],
    "openbookqa": [
        WRAPPED.format("Please choose the correct answer to the question: Q0\n\nAnswer1: x Answer2: y Answer3: z "
                       "Answer4: w\n\nAnswer format: answer1/answer2/answer3/answer4"),
        [f"the correct answer is answer{n}" for n in (1, 2, 3, 4)], 1],
}  # fmt: skip
"""The first row of each test: of questions the question, the options and the right one."""


def test_each_preset_reads_its_set(read: tuple[dict[str, Any], dict[str, str]]) -> None:
    found, commits = read
    for preset in PRESETS:
        of = found[f"data={preset}"]
        assert "error" not in of, of
        config = checked([f"data={preset}", "backbone=gpt2"]).data.hub  # type: ignore[attr-defined]
        assert of["facts"]["hub_commit"] == commits[config["id"]]
        if preset in TESTED:
            assert of["test"][0] == TESTED[preset], preset
            wanted = f"the {config['test']} split of {config['id']}"
            assert of["kind"].startswith(wanted), of["kind"]
            assert of["facts"]["rows_available"]["test"] == len(SETS[config["id"]][1][config["test"]])
    [mixture, answer] = found["data=commonsense_170k"]["test"][0]
    number = mixture.split("### Instruction:\n")[1].split()[0]
    assert (mixture, answer) == (WRAPPED.format(number), "the correct answer is true")


def test_alpaca_has_two_prompts_and_what_nobody_can_answer_is_left_out(
    read: tuple[dict[str, Any], dict[str, str]],
) -> None:
    of = read[0]["data=alpaca"]
    assert of["facts"]["rows_left_out"] == {"train, with an empty cell": 2}
    prompts = {answer: prompt for prompt, answer in [*of["train"], *of["test"]]}
    with_input = [prompt for prompt, _ in of["train"] if "### Input:" in prompt]
    assert with_input[0].startswith("Below is an instruction that describes a task, paired with an input")
    assert with_input[0].endswith(" + 1\n\n### Response:")
    without = [prompt for prompt, _ in of["train"] if "### Input:" not in prompt]
    number = without[0].split("Name ")[1].split(".")[0]
    assert without[0] == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        f"### Instruction:\nName {number}.\n\n### Response:"
    )
    assert len(prompts) == 40


def test_what_the_set_does_not_have_is_named(read: tuple[dict[str, Any], dict[str, str]]) -> None:
    found = read[0]
    column = found["data=gsm8k data.template.prompt='{problem}'"]["error"]
    assert "openai/gsm8k main, train split: there is no column 'problem'. Columns there are: answer, question" in column
    config = found["data=gsm8k data.hub.config=mian"]["error"]
    assert "data.hub.config=mian: openai/gsm8k has the configurations main" in config


def test_a_set_is_known_by_id_and_revision_and_pinned_to_its_commit() -> None:
    config = checked(["data=gsm8k", "backbone=gpt2"])
    other = checked(["data=gsm8k", "backbone=gpt2", "data.hub.revision=" + "a" * 40])
    assert run_key(config) != run_key(other)
    record = {"config": config.plain(), "data": {"hub_commit": "a" * 40}, "backbone": {}}
    [pin] = pins(record)
    assert (pin.override, pin.said) == ("data.hub.revision=" + "a" * 40, "main")
    assert pinned(record["config"], [pin])["data"]["hub"]["revision"] == "a" * 40


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("data.path=rows.jsonl", "data.path=rows.jsonl and data.hub (id openai/gsm8k) are both given"),
        ("+data.hub.split=train", "data.hub has no key 'split'"),
        ("data.hub.id=gsm8k", "data.hub.id=gsm8k must be a hub id, namespace/name"),
        ("data.hub.config=3", "data.hub.config=3 must be a text, or null"),
    ],
)
def test_a_hub_said_wrongly(typed: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        checked(["data=gsm8k", "backbone=gpt2", typed])
    assert said in str(caught.value)


def test_a_prompt_for_rows_without_a_cell_may_not_want_it() -> None:
    given = {"prompt": "{a} {b}", "response": "{c}", "without": {"b": "{a}"}}
    template = DialogueTemplate.of(given)
    assert template.filled({"a": "x", "b": "y", "c": "z"}) == ("x y", "z")
    assert template.filled({"a": "x", "b": " ", "c": "z"}) == template.filled({"a": "x", "b": None, "c": "z"})
    assert template.filled({"a": "x", "b": "", "c": "z"}) == ("x", "z")
    for wrong in ({"b": "{b}"}, {"c": "{a}"}, {"d": "{a}"}):
        with pytest.raises(ValueError, match=r"data\.template\.without\."):
            DialogueTemplate.of(given | {"without": wrong})
