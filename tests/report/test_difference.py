"""`peftlab diff`: what differs in two runs, and their tests text by text."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from scipy import stats  # type: ignore[import-untyped]

from peftlab.commands import diff
from peftlab.dialogues import Turn, written
from peftlab.errors import RunError
from peftlab.library.run import load_run
from peftlab.pairs import paired
from peftlab.records.folder import RunFolder
from peftlab.records.predictions import as_bytes, read_predictions, to_table
from peftlab.report.by_text import exact_mcnemar, with_texts
from peftlab.report.difference import Difference, difference
from tests.conftest import Peftlab
from tests.once import two_runs
from tests.report.made_up import failed, record, write


def run_with(folder: Path, made: dict[str, Any], columns: dict[str, list[Any]]) -> RunFolder:
    """A run that has kept these predictions."""
    import hashlib

    content = as_bytes(to_table(columns, ["bad", "good"]))
    made["files"] = {"predictions.parquet": {"sha256": hashlib.sha256(content).hexdigest()}}
    write(folder, [made])
    (folder / made["key"] / "predictions.parquet").write_bytes(content)
    return RunFolder(folder / made["key"])


def of(folder: Path, first: dict[str, Any], second: dict[str, Any], **how: Any) -> Difference:
    write(folder, [first, second])
    return difference(RunFolder(folder / first["key"]), RunFolder(folder / second["key"]), **how)


def test_what_differs_and_what_it_decides(tmp_path: Path) -> None:
    found = of(
        tmp_path,
        record(0.8, key="a", keys={"peft.rank": 2, "data.path": "a.jsonl"}, versions={"torch": "2.13.0", "numpy": "2"}),
        record(
            0.9, key="b", seed=1, keys={"peft.rank": 4, "peft.alpha": 8.0, "data.path": "b.jsonl"}, trainable=2000,
            versions={"torch": "2.12.0", "numpy": "2"}, hardware={"processor": "other"},
        ),
    )  # fmt: skip
    config = {line.name: (line.first, line.second, line.decides) for line in found.config}
    assert config == {
        "peft.rank": ("2", "4", True), "peft.alpha": ("–", "8", True), "seed": ("0", "1", True),
        "data.path": ("a.jsonl", "b.jsonl", False),
    }  # fmt: skip
    assert [line.name for line in found.circumstances] == ["hardware", "torch"]
    results = {line.name: line for line in found.results}
    assert results["test accuracy"].difference == pytest.approx(0.1)
    assert results["trainable"].difference == 1000
    assert next(iter(results)) == "test accuracy"
    assert results["chosen epoch"].first == "3", "as every screen counts them"
    assert found.notes == ()


def test_figures_that_do_not_compare_are_said(tmp_path: Path) -> None:
    first = record(0.8, key="a", data={"split_hashes": {"test": "1"}})
    second = record(0.8, key="b", data={"split_hashes": {"test": "2"}, "hash": "e" * 64})
    second["objective"] = {"name": "regression", "selects": "pearson", "metrics": {"loss": "min", "pearson": "max"}}
    found = of(tmp_path, first, second)
    assert "tested on different texts" in found.notes[0]
    assert "learn different things (classification, regression)" in found.notes[1]
    assert [line.name for line in found.data] == ["data hash"]


def test_a_run_without_results(tmp_path: Path) -> None:
    found = of(tmp_path, record(0.8, key="a"), failed(record(0.9, key="b", seed=4)))
    assert found.statuses == ("finished", "failed")
    assert [(line.name, line.second) for line in found.results][:1] == [("test accuracy", "–")]
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "config.yaml").write_text("name: t\nseed: 9\n", encoding="utf-8")
    (tmp_path / "c" / "metrics.csv").write_text("epoch\n", encoding="utf-8")
    begun = difference(RunFolder(tmp_path / "a"), RunFolder(tmp_path / "c"))
    assert begun.statuses[1] == "unfinished"
    assert ("seed", "0", "9") in [(line.name, line.first, line.second) for line in begun.config]


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (3, 9), (40, 61), (700, 600), (5, 5)])
def test_the_exact_test_is_scipys(first: int, second: int) -> None:
    expected = stats.binomtest(first, first + second, 0.5).pvalue if first + second else 1.0
    assert exact_mcnemar(first, second) == pytest.approx(expected, rel=1e-10)


def test_text_by_text(tmp_path: Path) -> None:
    draw = random.Random(3)
    gold = [draw.choice(["bad", "good"]) for _ in range(300)]
    columns = {"row": list(range(300)), "hash": [f"{n:016x}" for n in range(300)], "gold": gold}
    answers = [
        [label if draw.random() < right else "good" if label == "bad" else "bad" for label in gold]
        for right in (0.7, 0.8)
    ]
    first, second = (
        run_with(tmp_path, record(0.8, key=key), columns | {"predicted": answer})
        for key, answer in zip("ab", answers, strict=True)
    )
    found = difference(first, second, rows=True).by_text
    assert found is not None
    hits = [[a == b for a, b in zip(gold, answer, strict=True)] for answer in answers]
    each = [int(b) - int(a) for a, b in zip(*hits, strict=True)]
    assert (found.only_first, found.only_second) == (each.count(-1), each.count(1))
    assert found.difference == pytest.approx(sum(each) / 300)
    half = stats.sem(each) * stats.norm.ppf(0.975)
    assert (found.low, found.high) == pytest.approx((found.difference - half, found.difference + half))
    assert found.p == pytest.approx(stats.binomtest(each.count(1), each.count(1) + each.count(-1)).pvalue)
    differing = [row for row in range(300) if answers[0][row] != answers[1][row]]
    assert [(one.row, one.label, one.first, one.second, one.difference) for one in found.disagreements] == [
        (row, gold[row], answers[0][row], answers[1][row], each[row]) for row in differing
    ]
    told = with_texts(found, {f"{row:016x}": f"text {row}" for row in differing[1:]})
    assert [one.text for one in told.disagreements] == [None, *(f"text {row}" for row in differing[1:])]


def test_rows_of_tasks_with_numbers_are_no_right_labels(tmp_path: Path) -> None:
    """Of three texts one has a label; the two others, of a task with numbers, are neither right nor wrong."""
    columns = {"row": [0, 1, 2], "hash": ["a", "b", "c"], "task": ["s", "n", "s"], "gold": [None, "good", None],
               "gold_value": [1.0, None, 2.0]}  # fmt: skip
    first, second = (
        run_with(tmp_path, record(0, key=key), columns | {"predicted": [None, said, None], "value": [0.5, None, 0.7]})
        for key, said in (("a", "bad"), ("b", "good"))
    )
    found = difference(first, second, rows=True).by_text
    assert found is not None
    assert (found.rows, found.difference, found.only_second) == (1, 1.0, 1)
    assert [(one.row, one.task) for one in found.disagreements] == [(1, "n")]


def test_the_texts_are_those_of_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, peftlab: Peftlab) -> None:
    """Two runs of one test split: every text that they disagree about, and no other, as the file of reviews has it."""
    monkeypatch.chdir(tmp_path)
    runs = two_runs()
    tables = [read_predictions(RunFolder(Path(folder))).to_pydict() for folder in runs.values()]
    rows = [n for n, (a, b) in enumerate(zip(*(of["predicted"] for of in tables), strict=True)) if a != b]
    done = peftlab("diff", runs["t"], runs["u"], "--rows", "--json")
    assert done.status == 0, done.err
    found = json.loads(done.out)["by_text"]["disagreements"]
    assert [(one["row"], one["first"]) for one in found] == [(row, tables[0]["predicted"][row]) for row in rows]
    assert rows
    test = load_run(runs["t"]).config.data.load().test
    assert [one["text"] for one in found] == [test.texts[row] for row in rows]
    said = " ".join(peftlab("diff", runs["t"], runs["u"], "--rows").out.split())
    assert f"They say different things of {len(rows)} texts, in the order of the test" in said
    assert test.texts[rows[0]].split()[0] in said
    monkeypatch.setattr(diff, "MOST_TEXTS", 1)
    few = " ".join(peftlab("diff", runs["t"], runs["u"], "--rows").out.split())
    assert (f"{len(rows) - 1} more are in --json" in few) == (len(rows) > 1)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (paired("one", "two"), "one | two"),
        (written([Turn("system", "be brief"), Turn("user", "why?"), Turn("assistant", "because")]), "why?"),
        ('[["no dialogue', '[["no dialogue'),
    ],
)
def test_texts_are_shown_as_people_write_them(text: str, shown: str) -> None:
    assert diff._for_people(text) == shown


def test_texts_that_cannot_be_read_again_are_said(tmp_path: Path, peftlab: Peftlab) -> None:
    """The made-up records name a file that is not there."""
    columns = {"row": [0], "hash": ["a"], "gold": ["bad"]}
    for key, answer in (("a", "bad"), ("b", "good")):
        run_with(tmp_path / "t", record(0.8, key=key), columns | {"predicted": [answer]})
    done = peftlab("diff", "t/a", "t/b", "--rows")
    assert done.status == 0, done.err
    said = " ".join(done.out.split())
    assert "0 – bad bad good" in said
    assert "Texts that are not shown could not be read again: " in said


def test_numbers_text_by_text(tmp_path: Path) -> None:
    columns = {"row": [0, 1], "hash": ["a", "b"], "gold": [1.0, 2.0]}
    first = run_with(tmp_path, record(0, key="a"), columns | {"value": [1.5, 2.0]})
    second = run_with(tmp_path, record(0, key="b"), columns | {"value": [1.0, 4.0]})
    found = difference(first, second, rows=True).by_text
    assert found is not None
    assert (found.judged, found.p) == ("squared error", None)
    assert found.difference == pytest.approx((4.0 - 0.25) / 2)
    assert [(one.row, one.first, one.second) for one in found.disagreements] == [(1, 2.0, 4.0), (0, 1.5, 1.0)]
    assert math.isfinite(found.high)


def test_language_models_text_by_text(tmp_path: Path) -> None:
    columns = {"row": [0, 1], "hash": ["a", "b"], "tokens": [2, 3]}
    first = run_with(tmp_path, record(0, key="a"), columns | {"nats": [4.0, 6.0]})
    second = run_with(tmp_path, record(0, key="b"), columns | {"nats": [3.0, 6.0]})
    found = difference(first, second, rows=True).by_text
    assert found is not None
    assert (found.judged, found.difference) == ("loss of a text in nats", -0.5)


def test_other_texts_are_not_compared(tmp_path: Path) -> None:
    columns = {"row": [0], "gold": ["bad"], "predicted": ["bad"]}
    first = run_with(tmp_path, record(0, key="a"), columns | {"hash": ["a"]})
    second = run_with(tmp_path, record(0, key="b"), columns | {"hash": ["b"]})
    with pytest.raises(RunError, match="tested on different texts"):
        difference(first, second, rows=True)


def test_the_command(peftlab: Peftlab, tmp_path: Path) -> None:
    write(tmp_path / "t", [record(0.8, key="a", keys={"peft.rank": 2}), record(0.75, key="b", keys={"peft.rank": 4})])
    done = peftlab("diff", "t/a", "t/b")
    assert done.status == 0
    assert "peft.rank" in done.out
    assert "−0.05" in done.out
    assert json.loads(peftlab("diff", "t/a", "t/b", "--json").out)["config"][0]["name"] == "peft.rank"
    assert "made twice" in peftlab("diff", "t/a", "t/a").out
    for words, says in (
        (["t", "t/a"], "'t' holds 2 runs. Give one, such as t/a; `peftlab runs t` lists them"),
        (["t/a", "t/none"], "there is no folder 't/none'"),
        (["t/a", "t/b", "--rows"], "kept no predictions"),
    ):
        refused = peftlab("diff", *words)
        assert (refused.status, says in refused.err) == (2, True), refused.err
