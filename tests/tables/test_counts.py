"""The table of published counts: every row as declared, and a row that is falsified is found."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from peftlab.errors import ConfigError
from peftlab.schema import validate
from peftlab.tables.counts import (
    Count,
    CountedRow,
    CountsTable,
    agreement,
    arithmetic,
    compute,
    count,
    published_figure,
)
from peftlab.tables.declared import known_tables, tables_folder
from tests.conftest import Peftlab

CONTENT: dict[str, Any] = yaml.safe_load((tables_folder() / "counts.yaml").read_text(encoding="utf-8"))
DIFFER = {"GPT-2 M full", "GPT-2 M LoRA", "GPT-2 L LoRA", "LLaMA3-8B DoRA r=16"}


def small(*names: str) -> dict[str, Any]:
    """The table with only the rows called ``names``."""
    return CONTENT | {"rows": [copy.deepcopy(row) for row in CONTENT["rows"] if row["row"] in names]}


@pytest.mark.parametrize("row", CONTENT["rows"], ids=lambda row: f"{row['table'].split()[0]} {row['row']}")
def test_a_row_comes_out_as_declared(row: dict[str, Any]) -> None:
    computed = compute(CONTENT | {"rows": [row]}, "counts.yaml")
    assert computed.failures == []
    assert computed.records[0]["status"] == ("differs" if row["row"] in DIFFER else "match")


def test_the_four_that_differ_are_declared_so() -> None:
    assert {row["row"] for row in CONTENT["rows"] if row["status"] == "differs"} == DIFFER
    assert len(CONTENT["rows"]) == 47


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"recomputed": 102913}, "recomputed is 102,912, declared 102,913"),
        ({"published": "0.08%"}, "status is differs, declared match"),
        ({"percent": {"value": 0.0941, "of": ["trunk"]}}, "percent is 0.0940, declared 0.0941"),
        ({"status": "differs"}, "status is match, declared differs"),
        ({"backbone": "bert-large"}, "recomputed is 272,384"),
    ],
)
def test_a_falsified_row_fails(peftlab: Peftlab, scratch: Path, change: dict[str, Any], said: str) -> None:
    content = small("BERT-base")
    content["rows"][0] |= change
    (scratch / "false.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    result = peftlab("table", "false.yaml")
    assert result.status == 1
    assert said in result.err
    assert "1 not as declared" in result.out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"peft": "bitfti"}, "Did you mean 'bitfit'?"),
        ({"backbone": "bert-bsae"}, "Did you mean 'bert-base'?"),
        ({"source": "dream"}, "source 'dream'"),
        ({"published": "a lot"}, "'a lot' cannot be read"),
        ({"fields": {"terms": ["nothing.bias"]}}, "row 'BERT-base'"),
        ({"formula": "1 + 1"}, "either backbone and peft, or formula"),
        ({"recomputde": 1}, "recomputde"),
    ],
)
def test_a_row_that_cannot_be(peftlab: Peftlab, scratch: Path, change: dict[str, Any], said: str) -> None:
    content = small("BERT-base")
    content["rows"][0] |= change
    (scratch / "wrong.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    result = peftlab("table", "wrong.yaml")
    assert result.status == 2
    assert said in result.err


def test_the_forms_it_is_printed_in(peftlab: Peftlab, scratch: Path) -> None:
    content = small("GPT-2 M LoRA", "BERT-base", "fc1 LoRA r=2")
    (scratch / "some.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    text = peftlab("table", "some.yaml")
    assert text.status == 0
    assert max(map(len, text.out.splitlines())) <= 110
    for word in ("LoRA (arXiv:2106.09685), table 3", "393,216", "0.35M", "differs", "0.0940%", "to be confirmed"):
        assert word in text.out
    printed = peftlab("table", "some.yaml", "--json")
    rows = json.loads(printed.out)["rows"]
    assert [row["recomputed"] for row in rows] == [393_216, 102_912, 456]
    assert rows[0]["status"] == "differs"
    assert rows[0]["source"] == "readme"
    lines = [line for line in peftlab("table", "some.yaml", "--markdown").out.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 3
    assert {line.count("|") for line in lines} == {9}


def test_the_list_of_tables(peftlab: Peftlab) -> None:
    listed = peftlab("table").out.splitlines()
    assert [line.split()[0] for line in listed] == sorted(known_tables())
    assert len({line.index(line.split()[1]) for line in listed}) == 1  # the titles are aligned
    wrong = peftlab("table", "cuonts")
    assert wrong.status == 2
    assert "Did you mean 'counts'?" in wrong.err


def test_published_figures() -> None:
    assert published_figure("0.3M") == (0.3e6, 0.1e6)
    assert published_figure("20,480") == (20480, 1)
    assert published_figure("0.83%") == (0.83, 0.01)
    assert published_figure("about 450") == (450, 1)
    row = {"table": "t", "row": "r", "recomputed": 0, "status": "match", "source": "s", "formula": "0"}
    thousands = validate(row | {"published": "0.3M"}, CountedRow, "")
    assert agreement(thousands, Count(349_999, None)) == "match"
    assert agreement(thousands, Count(350_001, None)) == "differs"
    assert (
        agreement(validate(row | {"published": "0.3M", "rounded_to": 1e6}, CountedRow, ""), Count(799_999, None))
        == "match"
    )


def test_arithmetic_and_nothing_else() -> None:
    assert arithmetic("(4 + 32/64) * 2 - 1") == 8
    for wrong in ("__import__('os')", "1 +", "1/0", "x", "2**9"):
        with pytest.raises(ConfigError, match="formula"):
            arithmetic(wrong)


def test_bits_of_the_formula_are_those_that_are_stored() -> None:
    """4 + 8/64 + 32/(64 · 256) bits a parameter, and the tables of both code books beside them."""
    from peftlab.backbones.quantize import quantize, stored_bytes

    model = torch.nn.Sequential(torch.nn.Linear(1024, 1024, bias=False))
    quantize(model, "nf4", keep=[], device=torch.device("cpu"))
    tables = 4 * (16 + 256 + 1)  # code of nf4, code of the scales, their mean
    assert stored_bytes(model) == 1024**2 * (4 + 8 / 64 + 32 / (64 * 256)) / 8 + tables


def test_a_row_counts_what_its_own_config_makes() -> None:
    table = validate(small("GPT-3 LoRA r=8"), CountsTable, "")
    found = count(table.rows[0], table)
    assert found.number == 96 * 2 * 8 * (12288 + 12288)
