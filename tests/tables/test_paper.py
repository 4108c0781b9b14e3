"""Tables of papers: counts against closed forms, scores that are not claimed, and falsified cells that are found."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from peftlab.backbones.transformer import TransformerConfig
from peftlab.composition import checked
from peftlab.errors import ConfigError
from peftlab.records.folder import RunFolder
from peftlab.schema import validate
from peftlab.tables.counts import CountsTable
from peftlab.tables.declared import compute, known_tables, read_table, tables_folder
from peftlab.tables.memory import Memory, Stored, count_bytes, nf4_bytes, status_of
from tests.conftest import Peftlab

PAPERS = ["lora_glue", "dora_commonsense", "qlora_memory"]
TINY = """
kind: paper
title: A small table
counts: counts
counts_table: 'LoRA (arXiv:2106.09685), table 2'
sources: {memory: from memory}
tasks:
  SST-2: {overrides: [data=glue, data.task=sst2]}
  MRPC: {missing: sentence pairs}
overrides: [name=small, logger=none]
rows:
  - row: RoBERTa-base LoRA
    counted: RoBERTa-base LoRA
    source: memory
    scores: {SST-2: 95.0, MRPC: 89.0}
    mean: 92.0
    overrides: [backbone=roberta_base, peft=lora]
"""


def content(name: str) -> dict[str, Any]:
    found: dict[str, Any] = read_table(name)[0]
    return found


def write(changed: dict[str, Any]) -> str:
    Path("paper.yaml").write_text(yaml.safe_dump(changed, allow_unicode=True, sort_keys=False), encoding="utf-8")
    return "paper.yaml"


def test_the_papers_there_are() -> None:
    assert set(PAPERS) <= set(known_tables())
    assert {name for name in known_tables() if content(name)["kind"] == "paper"} == set(PAPERS)


@pytest.mark.parametrize("name", PAPERS)
def test_it_comes_out_as_declared(name: str) -> None:
    computed = compute(name)
    assert computed.failures == []
    given = content(name)
    assert len(computed.records) == sum(
        ("counted" in row) + ("memory" in row) + len(row.get("scores", {})) + ("mean" in row) for row in given["rows"]
    )
    text = (tables_folder() / f"{name}.yaml").read_text(encoding="utf-8")
    assert f"peftlab table {name}" in text.splitlines()[0]
    assert "Cost:" in text
    for record in computed.records:
        assert record["source"] in ("readme", "memory")
        if record["cell"] not in ("parameters", "memory", "mean"):
            runnable = record["status"] == "not run here"
            assert runnable == (record["command"] is not None)
            assert runnable or record["status"] == "cannot be run here"
            assert record["recomputed"] is None


def test_a_command_that_is_shown_composes() -> None:
    records = compute(write(content("lora_glue"))).records
    commands = [record["command"].split() for record in records if record["command"]]
    table = content("lora_glue")
    tasks = [task["overrides"][1].removeprefix("data.task=") for task in table["tasks"].values() if "overrides" in task]
    assert len(commands) == len(table["rows"]) * len(tasks)
    for number in {*range(len(tasks)), *range(0, len(commands), len(tasks) + 1)}:  # every task, and every row
        command = commands[number]
        assert command[:2] == ["peftlab", "train"]
        config = checked(command[2:]).plain()
        assert config["data"]["task"] == tasks[number % len(tasks)]
        assert config["name"] == "lora_glue"


@pytest.mark.parametrize(
    ("hidden", "layers", "inner", "printed"),
    [(8192, 80, 22016, 65.2), (6656, 60, 17920, 32.5), (5120, 40, 13824, 13.0)],
)
def test_memory_against_arithmetic(hidden: int, layers: int, inner: int, printed: float) -> None:
    """LLaMA by hand: four square matrices and three of the MLP a layer; two norms a layer and one at the end."""
    architecture = {
        "model_type": "llama", "vocab_size": 32000, "hidden_size": hidden, "num_hidden_layers": layers,
        "num_attention_heads": hidden // 128, "intermediate_size": inner,
    }  # fmt: skip
    llama = {"_target_": "peftlab.backbones.transformer.TransformerConfig", "architecture": architecture}
    table = CountsTable(kind="counts", title="", sources={}, rows=[], backbones={"llama": llama})
    given = {"backbone": "llama", "published": "1 GB", "recomputed": 1, "status": "match", "source": "s"}
    matrices = 4 * hidden**2 + 3 * hidden * inner
    others = 2 * 32000 * hidden + (2 * layers + 1) * hidden
    assert abs((layers * matrices + others) / 1e9 - printed) < 0.1  # the LLaMA paper's billions, cut or rounded
    adam = count_bytes(validate(given | {"store": "16 bits with Adam"}, Memory, ""), table)
    assert adam == Stored(12 * (layers * matrices + others), layers * matrices + others)

    rank = 64
    every = ["query", "key", "value", "attention_output", "ffn_up", "ffn_gate", "ffn_down"]
    lora = layers * rank * (4 * 2 * hidden + 3 * (hidden + inner))
    found = count_bytes(
        validate(given | {"store": "nf4", "adapter": {"rank": rank, "targets": every}}, Memory, ""), table
    )
    assert found.trainable == lora
    # 4 bits a weight, 8 a scale of 64, 32 a scale of 256 scales; the code books of a layer are 1,092 bytes.
    bits = 4 + 8 / 64 + 32 / (64 * 256)
    exact = layers * matrices * bits / 8 + 7 * layers * 1092 + 2 * others + 2 * lora
    assert math.isclose(found.bytes, exact, rel_tol=1e-6)


def test_nf4_bytes_are_those_that_quantising_really_stores() -> None:
    """Quantise a small BERT and weigh it; the parts that stay in float take 4 bytes here and 2 in the table."""
    from peftlab.backbones.quantize import quantize, stored_bytes

    architecture = {
        "model_type": "bert", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 192, "vocab_size": 300, "max_position_embeddings": 16,
    }  # fmt: skip
    model = TransformerConfig(architecture=architecture).build(2, seed=0, device="cpu").model
    heads = {id(p) for name, p in model.named_parameters() if name.startswith("classifier")}
    linear = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)} - heads
    floats = sum(p.numel() for p in model.parameters() if id(p) not in linear)
    head = sum(p.numel() for p in model.parameters() if id(p) in heads)
    expected = nf4_bytes(model, heads)
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    quantize(model, "nf4", keep=["classifier"], device=torch.device("cpu"))
    assert stored_bytes(model) - buffers - 4 * floats == expected - 2 * (floats - head)


@pytest.mark.parametrize(
    ("published", "bound", "size", "status"),
    [
        ("41 GB", None, 41_499_999_999, "match"),
        ("41 GB", None, 41_600_000_000, "differs"),
        ("780 GB", "above", 780_000_000_001, "match"),
        ("780 GB", "above", 779_000_000_000, "differs"),
        ("48 GB", "below", 47_999_999_999, "match"),
        ("48 GB", "below", 48_000_000_001, "differs"),
    ],
)
def test_bounds_and_rounding(published: str, bound: Any, size: int, status: str) -> None:
    memory = Memory(
        backbone="b", store="nf4", published=published, bound=bound, recomputed=1, status="match", source="s"
    )
    assert status_of(memory, Stored(size, 0)) == status


def test_a_finished_run_stands_beside_the_published_score(peftlab: Peftlab, scratch: Path) -> None:
    given = yaml.safe_load(TINY)
    before = compute(write(given)).records[1]
    assert (before["cell"], before["status"], before["recomputed"]) == ("SST-2", "not run here", None)
    folder = RunFolder.of(checked(before["command"].split()[2:]))
    folder.path.mkdir(parents=True)
    record = {"schema_version": 1, "status": "finished", "key": folder.key, "metrics": {"test": {"accuracy": 0.9461}}}
    folder.write_record(record)
    result = peftlab("table", "paper.yaml", "--json")
    after = json.loads(result.out)["rows"][1]
    assert result.status == 0
    assert (after["status"], after["published"]) == ("measured", "95")
    assert after["recomputed"] == pytest.approx(94.61)
    folder.write_record(record | {"status": "failed"})
    assert compute("paper.yaml").records[1]["status"] == "not run here"


def test_the_forms_it_is_printed_in(peftlab: Peftlab) -> None:
    path = write(yaml.safe_load(TINY))
    text = peftlab("table", path)
    assert text.status == 0
    assert max(map(len, text.out.splitlines())) <= 110
    for word in ("294,912", "match", "not run here", "cannot be run here", "sentence pairs", "data.task=sst2"):
        assert word in text.out
    assert "4 cells: 2 match, 1 not run here, 1 cannot be run here; 0 not as declared" in text.out
    assert "peftlab train" not in text.out.split("a score is that of:")[0]
    lines = [line for line in peftlab("table", path, "--markdown").out.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 4
    assert {line.count("|") for line in lines} == {8}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mean": 92.2}, "the mean of the scores is 92.000, declared 92.2"),
        ({"scores": {"SST-2": 95.0, "MRPC": 90.0}}, "the mean of the scores is 92.500, declared 92"),
        (
            {"memory": {"backbone": "bert-base", "store": "16 bits with Adam", "published": "3 GB", "recomputed": 5,
                        "status": "match", "source": "memory"}},
            "bytes, declared 5; status is differs, declared match",
        ),
    ],
)  # fmt: skip
def test_a_falsified_cell_fails(peftlab: Peftlab, scratch: Path, change: dict[str, Any], said: str) -> None:
    given = yaml.safe_load(TINY)
    given["rows"][0] |= change
    result = peftlab("table", write(given))
    assert result.status == 1
    assert said in result.err
    assert "1 not as declared" in result.out


def test_a_falsified_count_fails_here_too(peftlab: Peftlab, scratch: Path) -> None:
    falsified = copy.deepcopy(content("counts"))
    for row in falsified["rows"]:
        if row["row"] == "RoBERTa-base LoRA":
            row["recomputed"] += 1
    Path("falsified.yaml").write_text(yaml.safe_dump(falsified, allow_unicode=True), encoding="utf-8")
    result = peftlab("table", write(yaml.safe_load(TINY) | {"counts": "falsified.yaml"}))
    assert result.status == 1
    assert "RoBERTa-base LoRA: recomputed is 294,912, declared 294,913" in result.err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"counted": "RoBERTa-base LoRa"}, "Did you mean 'RoBERTa-base LoRA'?"),
        ({"source": "dream"}, "source 'dream' is not in sources: memory"),
        ({"scores": {"SST2": 95.0}}, "'SST2' is no task. Did you mean 'SST-2'?"),
        ({"scroes": {}}, "scroes"),
        ({"overrides": ["backbone=roberta_base", "peft.rnak=2"]}, "Did you mean 'rank'?"),
        (
            {"memory": {"backbone": "bert-bsae", "store": "nf4", "published": "1 GB", "recomputed": 5,
                        "status": "match", "source": "memory"}},
            "Did you mean 'bert-base'?",
        ),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be(peftlab: Peftlab, scratch: Path, change: dict[str, Any], said: str) -> None:
    given = yaml.safe_load(TINY)
    given["rows"][0] |= change
    result = peftlab("table", write(given))
    assert result.status == 2
    assert said in result.err
    assert "paper.yaml" in result.err


def test_a_task_can_be_run_or_says_why_not() -> None:
    given = yaml.safe_load(TINY)
    given["tasks"]["MRPC"] = {}
    with pytest.raises(ConfigError, match="either overrides or missing"):
        compute(write(given))
