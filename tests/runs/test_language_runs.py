"""One run of a language model on instructions: its answers in the record, tested again, predicted and exported."""

from __future__ import annotations

import json
import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import peft
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

from peftlab.cli import main
from peftlab.data.probe_texts import ProbeTexts
from peftlab.language.answers import plain
from peftlab.library.run import load_run
from peftlab.records.folder import finished_run
from peftlab.runs.assemble import as_it_began
from peftlab.runs.probe import probe
from tests.conftest import Peftlab, run_folder
from tests.data.tiny_language import CHATML, plain_tokenizer
from tests.runs.small_runs import record_of

COLOURS = ["red", "blue", "green", "grey"]
ASKED = [f"{word} it is {number}" for number, word in enumerate(COLOURS * 15)]

RUN = [
    "data=instructions", "data.path=rows", "backbone=hf", "backbone.name_or_path=model", "data.max_length=64",
    "data.too_long=leave_out", "data.generate={judge: [exact_match, rouge_l], max_new_tokens: 8}", "peft=lora",
    "peft.targets=[query,key,value,attention_output,ffn_up,ffn_down,ffn_gate]", "peft.rank=8", "optim.lr=0.03",
    "trainer.max_epochs=5", "trainer.progress_bar=false", "trainer.threads=1", "logger=none",
    "trainer.measure_before=true",
]  # fmt: skip
"""What ``_trained_once`` has trained, where it has trained it."""


def write_model(folder: Path) -> None:
    """A Llama type of two layers with a chat template, whose padding token is the end token."""
    tokenizer = plain_tokenizer(template=CHATML)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(repetition_penalty=3.0, eos_token_id=0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_rows(folder: Path) -> None:
    folder.mkdir()
    too_long = "grey it is" + " 3" * 80
    for split, asked in (("train", [*ASKED, too_long]), ("validation", ASKED[:8]), ("test", ASKED[40:52])):
        rows = [{"prompt": text, "response": text.split()[0]} for text in asked]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@cache
def _trained_once() -> tempfile.TemporaryDirectory[str]:
    """A folder with one finished run; trained once a test process."""
    folder = tempfile.TemporaryDirectory(prefix="language-run")
    here = Path.cwd()
    os.chdir(folder.name)
    try:
        write_model(Path("model"))
        write_rows(Path("rows"))
        status = main(["train", *RUN])
        assert status == 0
    finally:
        os.chdir(here)
    return folder


@pytest.fixture
def trained() -> Path:
    """The working folder of the tests."""
    return Path(_trained_once().name)


@pytest.fixture
def run(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(trained)
    return run_folder()


def asked(tokenizer: Any, text: str) -> torch.Tensor:
    ids = tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)
    return torch.tensor([ids["input_ids"] if not isinstance(ids, list) else ids])


def test_the_record_has_the_answers_figures_and_how_they_came(run: Path) -> None:
    record, table = record_of(run), pq.read_table(run / "predictions.parquet").to_pydict()
    figures = record["metrics"]["test"]
    assert table["reference"] == [text.split()[0] for text in ASKED[40:52]]
    right = [plain(a) == plain(b) for a, b in zip(table["generated"], table["reference"], strict=True)]
    assert table["exact_match"] == right
    assert figures["exact_match"] == sum(right) / 12
    assert figures["exact_match"] > record["before"]["test"]["exact_match"] == 0
    assert figures["generated"]["prompts"] == 12
    end = AutoTokenizer.from_pretrained("model").convert_tokens_to_ids("<|end|>")
    said = record["generation"]
    assert (said["decoding"], said["max_new_tokens"], said["stop_ids"]) == ("greedy", 8, [end])
    assert set(said["rules"]) == {"exact_match", "rouge_l"}


def test_a_row_too_long_is_left_out_of_training_and_counted(run: Path) -> None:
    record = record_of(run)
    assert record["data"]["too_long"] == {"train": 1, "validation": 0, "test": 0}
    assert record["data"]["rows"]["train"] == len(ASKED) == record["history"][0]["train_rows"]
    assert record["data"]["rows_available"]["train"] == len(ASKED) + 1
    assert record["data"]["train_kind"] == "train file (train.jsonl, 61 rows), without 1 row of more than 64 tokens"


def test_general_text_is_probed_with_what_was_trained_and_without(run: Path, tmp_path: Path, peftlab: Peftlab) -> None:
    """Without is the untrained model to the bit; both losses are transformers' own, token by token."""
    texts = ["the sky was grey and the water cold", "count the apples: one, two"]
    file = tmp_path / "general.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    asked = ["inspect", run, "--json", "--intruders", "4", "--probe", file, "--to", tmp_path / "x.png"]
    refused = peftlab(*asked)
    assert "--probe-length=512 is more than this llama has positions for: set --probe-length to" in refused.err
    result = peftlab(*asked, "--probe-length", "64")
    assert result.status == 0, result.err
    found = json.loads(result.out)
    assert {layer["intruders"] for layer in found["layers"]} <= {0, 1, 2, 3, 4}
    figures = found["probe"]
    tokenizer = AutoTokenizer.from_pretrained("model")
    begin = tokenizer.convert_tokens_to_ids("<|begin|>")
    rows = [[begin, *tokenizer(text, add_special_tokens=False)["input_ids"]] for text in texts]
    untrained: Any = AutoModelForCausalLM.from_pretrained("model").eval()
    nats = {"untrained": 0.0, "trained": 0.0}
    own = load_run(run).model()
    for row in rows:
        ids = torch.tensor([row])
        with torch.no_grad():
            said = {"untrained": untrained(input_ids=ids).logits, "trained": own(ids, torch.ones_like(ids))}
        for name, logits in said.items():
            nats[name] += float(torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum"))
    tokens = sum(len(row) - 1 for row in rows)
    for name in nats:
        assert figures[name]["tokens"] == tokens
        assert figures[name]["loss"] == pytest.approx(nats[name] / tokens, rel=1e-5)
    assert figures["forgetting"] == figures["trained"]["loss"] - figures["untrained"]["loss"] != 0
    folder, config, _ = finished_run(str(run))
    began, _ = as_it_began(folder, config)
    with began.adapter.disabled():
        alone = probe(folder, config, began, ProbeTexts(str(file), max_length=64))
    assert alone.trained == figures["untrained"]


def test_a_probe_is_a_part_of_a_run(run: Path, tmp_path: Path, peftlab: Peftlab) -> None:
    """The record has what ``inspect --probe`` finds of it; the key knows the texts by their content."""
    texts = "".join(json.dumps({"said": text}) + "\n" for text in ("the sky was grey", "one, two, and the water"))
    general, moved = tmp_path / "general.jsonl", tmp_path / "moved.jsonl"
    for file in (general, moved):
        file.write_text(texts, encoding="utf-8")

    def asked(file: Path) -> list[str]:
        return [*RUN, f"probe={{file: {file}, column: said, max_length: 64}}", f"output_dir={tmp_path / 'outputs'}"]

    result = peftlab("train", *asked(general))
    assert result.status == 0, result.err
    (folder,) = (tmp_path / "outputs").glob("*/*")
    record = record_of(folder)
    assert record["metrics"] == record_of(run)["metrics"], "measuring changes nothing"
    probing = ["--json", "--probe", general, "--probe-column", "said", "--probe-length", "64"]
    inspected = json.loads(peftlab("inspect", folder, *probing).out)["probe"]
    assert record["probe"] == inspected
    assert record["probe"]["forgetting"] > 0
    assert str(folder) in peftlab("train", *asked(moved)).out, "found again by what the file holds"
    assert list(folder.parent.iterdir()) == [folder]
    verified = peftlab("verify", folder)
    assert verified.status == 0, verified.err
    moved.write_text(texts.upper(), encoding="utf-8")
    assert folder.name not in peftlab("check", *asked(moved)).out


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("{file: absent.jsonl}", "probe.file=absent.jsonl: there is no such file."),
        ("{files: a.jsonl}", "probe has no key 'files'. Did you mean 'file'? It has: file, column, max_length."),
        ("{column: a}", "probe.file=None must be the file of the texts"),
        ("{file: a.jsonl, max_length: 1}", "probe.max_length=1 must be a whole number of tokens from 2 on."),
        ("{file: FILE, max_length: 900}", "probe.max_length=900 is more than this llama has positions for: set "),
        ("{file: FILE, max_length: 64}", "probe.file: "),
    ],
)
def test_a_probe_that_cannot_be_measured_is_refused_before_training(
    run: Path, tmp_path: Path, peftlab: Peftlab, said: str, expected: str
) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "one"}\n{"text": ""}\n', encoding="utf-8")
    outputs = tmp_path / "outputs"
    refused = peftlab("train", *RUN, f"probe={said.replace('FILE', str(file))}", f"output_dir={outputs}")
    assert refused.status == 2
    assert expected in refused.err
    assert not outputs.exists()


def test_a_run_of_instructions_chooses_between_options(run: Path, tmp_path: Path, peftlab: Peftlab) -> None:
    """It has no head of labels; the options' log-likelihoods are the model's own, token by token."""
    rows = [
        {"question": f"{colour} it is {n}", "options": COLOURS, "answer": n % 4} for n, colour in enumerate(COLOURS * 2)
    ]
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = ["data=multiple_choice", f"data.train={file}", f"data.test={file}"]
    result = peftlab("evaluate", run, *data, "--json")
    assert result.status == 0, result.err
    tokenizer, own = AutoTokenizer.from_pretrained("model"), load_run(run).model()

    def log_likelihood(question: str, option: str) -> float:
        ids = torch.tensor([tokenizer(f"{question} {option}")["input_ids"]])
        said = len(tokenizer(question)["input_ids"])
        with torch.no_grad():
            logits = own(ids, torch.ones_like(ids))[0, said - 1 : -1]
        return -float(torch.nn.functional.cross_entropy(logits, ids[0, said:], reduction="sum"))

    chosen = [max(range(4), key=lambda n: log_likelihood(row["question"], COLOURS[n])) for row in rows]
    figures = json.loads(result.out)["metrics"]
    assert figures["rows"] == 8
    assert figures["accuracy"] == sum(n == row["answer"] for n, row in zip(chosen, rows, strict=True)) / 8


@pytest.mark.whole
def test_it_is_verified_and_predicted_with(run: Path, peftlab: Peftlab) -> None:
    result = peftlab("verify", run, "--rerun-eval")
    assert result.status == 0, result.out
    table = pq.read_table(run / "predictions.parquet").to_pydict()
    result = peftlab("predict", run, "--json", "--text", ASKED[40], "--text", ASKED[41])
    assert [json.loads(line)["generated"] for line in result.out.splitlines()] == table["generated"][:2]


@pytest.mark.whole
def test_peft_and_transformers_write_the_same_answers(run: Path, peftlab: Peftlab, tmp_path: Path) -> None:
    """Both folders: logits within 1e-5 of the largest, and the same tokens, ended by the id that was trained."""
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    for target, more in ((adapter, ()), (merged, ("--merged",))):
        result = peftlab("export", run, "--to", target, *more)
        assert result.status == 0, result.err
    assert json.loads((adapter / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"
    assert not json.loads((adapter / "adapter_config.json").read_text())["modules_to_save"]
    tokenizer = AutoTokenizer.from_pretrained("model")
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    theirs: Any = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("model"), adapter).eval()
    theirs.generation_config = GenerationConfig.from_pretrained(adapter)
    whole: Any = AutoModelForCausalLM.from_pretrained(merged).eval()
    own = load_run(run).model()
    table = pq.read_table(run / "predictions.parquet").to_pydict()
    for model in (theirs, whole):
        config = model.generation_config
        assert config.eos_token_id in (end, [end])
        for number in (40, 41, 47):
            ids = asked(tokenizer, ASKED[number])
            with torch.no_grad():
                mine, logits = own(ids, torch.ones_like(ids)), model(input_ids=ids).logits
            assert (logits - mine).abs().max() < 1e-5 * mine.abs().max()
            plainly = {"do_sample": False, "repetition_penalty": 1.0, "max_new_tokens": 8}
            new = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **plainly)[0, ids.shape[1] :]
            assert tokenizer.decode(new, skip_special_tokens=True) == table["generated"][number - 40]
    assert whole.config.use_cache
    assert AutoTokenizer.from_pretrained(merged).chat_template == CHATML


@pytest.mark.whole
def test_a_trunk_without_the_head_is_refused(run: Path, peftlab: Peftlab, tmp_path: Path) -> None:
    result = peftlab("export", run, "--to", tmp_path / "trunk", "--trunk-only")
    assert result.status == 2
    assert "a language model has its own" in result.err


def test_answers_that_may_outgrow_the_model_are_refused_before_training(
    run: Path, trained: Path, peftlab: Peftlab
) -> None:
    result = peftlab(
        "train", "data=instructions", "data.path=rows", "backbone=hf", f"backbone.name_or_path={trained}/model",
        "data.max_length=100", "data.generate={max_new_tokens: 29}", "peft=lora", "logger=none",
    )  # fmt: skip
    assert result.status == 2
    assert "129 tokens together, more than this llama has positions for" in result.err


def test_rows_that_do_not_fit_are_found_before_the_trunk_is_computed(
    scratch: Path, peftlab: Peftlab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEFTLAB_CACHE", str(scratch / "cache"))
    write_model(Path("model"))
    write_rows(Path("rows"))
    with Path("rows/test.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"prompt": "grey it is" + " 3" * 80, "response": "grey"}) + "\n")
    upper = ["backbone.cache_frozen=true", "peft.targets=['.*layers[.]1[.].*_proj']"]
    result = peftlab("train", *RUN, *upper)
    assert result.status == 2
    assert "rows/test.jsonl, row 13 (line 13)" in result.err
    assert "frozen trunk" not in result.out
    assert not (scratch / "cache" / "trunk").exists()
    write = Path("rows/test.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[:-1]
    Path("rows/test.jsonl").write_text("".join(write), encoding="utf-8")
    result = peftlab("train", *RUN, *upper, "trainer.max_epochs=1")
    assert result.status == 0
    assert result.out.index("trainable ") < result.out.index("frozen trunk: the first 1 of 2 blocks")
