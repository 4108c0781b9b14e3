"""What was predicted of each row: kept with every run, written by evaluate, and made of files of texts."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss

from peftlab.backbones.text_classifier_backbone import TextClassifierBackbone
from peftlab.commands.prediction_files import write_rows
from peftlab.data.base import Splits, Texts
from peftlab.errors import RunError
from peftlab.library.run import load_run
from peftlab.objectives.base import objective
from peftlab.objectives.parts.mixture import Mixture
from peftlab.objectives.parts.split import KeptOutputs
from peftlab.objectives.parts.task import Task, TaskLabel
from peftlab.records.folder import RunFolder
from peftlab.records.predictions import as_bytes, class_names, read_predictions
from peftlab.runs.predictions import predictions_table
from tests.conftest import Peftlab
from tests.runs.small_runs import edit, finished, record_of

TEXTS = ["a dull film", "a fine, moving film", "awful\tboring"]


def test_a_run_keeps_its_predictions_in_the_order_of_its_test(reviews: Path) -> None:
    folder = finished(reviews)
    table, test = read_predictions(RunFolder(folder)), record_of(folder)["metrics"]["test"]
    names, rows = class_names(table), load_run(folder).config.data.load().test
    assert names == record_of(folder)["data"]["label_names"]
    assert table["row"].to_pylist() == list(range(len(rows)))
    gold, predicted = table["gold"].to_pylist(), table["predicted"].to_pylist()
    assert gold == [names[label] for label in rows.labels]
    assert accuracy_score(gold, predicted) == test["accuracy"]
    shares = np.array(table["probabilities"].to_pylist(), dtype=np.float64)
    assert log_loss(gold, shares / shares.sum(axis=1, keepdims=True), labels=names) == pytest.approx(
        test["loss"], rel=1e-5
    )
    again = load_run(folder).predict(rows.texts)
    assert [row["label"] for row in again] == predicted
    assert [list(row["probabilities"].values()) for row in again] == [
        pytest.approx(list(row), abs=1e-5) for row in shares
    ]
    assert table.schema.field("probabilities").type == pa.list_(pa.float32())


def test_another_file_is_not_read_and_a_run_without_one_says_so(peftlab: Peftlab, reviews: Path) -> None:
    folder = finished(reviews)
    kept = folder / "predictions.parquet"
    raw = bytearray(kept.read_bytes())
    raw[len(raw) // 2] ^= 1
    kept.write_bytes(raw)
    with pytest.raises(RunError, match=r"predictions\.parquet is not the file that the run wrote"):
        read_predictions(RunFolder(folder))
    assert "predictions.parquet" in peftlab("verify", folder).out
    kept.unlink()
    with pytest.raises(RunError, match="cannot read"):
        read_predictions(RunFolder(folder))
    assert peftlab("predict", folder, "--text", "fine").status == 0, "no model is made of it"
    edit(folder, lambda record: record["files"].pop("predictions.parquet"))
    with pytest.raises(RunError, match=r"kept no predictions.*--predictions FILE"):
        read_predictions(RunFolder(folder))


def test_outputs_come_back_by_their_rows() -> None:
    kept = KeptOutputs(2)
    kept.update([3, 0], torch.tensor([[3.0, -3.0], [0.0, -0.0]]))
    kept.update([2, 1], torch.tensor([[2.0, -2.0], [1.0, -1.0]]))
    assert kept.compute()[:, 0].tolist() == [0.0, 1.0, 2.0, 3.0]


def split_of(texts: Texts, names: tuple[str, ...], tasks: tuple[Task, ...] = ()) -> Splits:
    return Splits(texts, texts, texts, names, "test", tasks=tasks)


def test_numbers() -> None:
    rows = Texts(["a", "b"], [1.5, 0.1])
    table = predictions_table(objective("regression"), split_of(rows, ("value",)), rows, torch.tensor([[1.25], [0.5]]))
    assert table["gold"].to_pylist() == [1.5, 0.1]
    assert table["value"].to_pylist() == [1.25, 0.5]


def test_several_classifications_have_their_own_classes() -> None:
    tasks = (Task("a", 0, 2), Task("b", 2, 5))
    names = ("a/no", "a/yes", "b/0", "b/1", "b/2")
    rows = Texts(["x", "y"], [4, 0])
    outputs = torch.tensor([[-torch.inf, -torch.inf, 0.0, 2.0, 0.0], [1.0, 0.0, -torch.inf, -torch.inf, -torch.inf]])
    found = predictions_table(objective("classification"), split_of(rows, names, tasks), rows, outputs).to_pylist()
    assert [(row["task"], row["gold"], row["predicted"]) for row in found] == [("b", "2", "1"), ("a", "no", "no")]
    assert found[1]["probabilities"] == pytest.approx([torch.e / (1 + torch.e), 1 / (1 + torch.e)])
    assert len(found[0]["probabilities"]) == 3


def test_tasks_that_differ_in_kind() -> None:
    tasks = (Task("a", 0, 2), Task("s", 2, 3, "regression"))
    mixture = Mixture({"a": objective("classification"), "s": objective("regression")})
    rows = Texts(["x", "y"], [TaskLabel(1, 0.5), TaskLabel(0, 1)])
    outputs = torch.tensor([[9.0, 9.0, 0.25], [0.0, 0.0, 9.0]])
    found = predictions_table(mixture, split_of(rows, ("a/no", "a/yes", "s/value"), tasks), rows, outputs).to_pylist()
    first, second = ({key: value for key, value in row.items() if value is not None} for row in found)
    assert (first["gold_value"], first["value"], "gold" in first) == (0.5, 0.25, False)
    assert (second["gold"], second["predicted"], second["probabilities"]) == ("yes", "no", [0.5, 0.5])


def test_25_000_rows_are_small() -> None:
    rows = Texts([f"text {i}" for i in range(25_000)], [i % 2 for i in range(25_000)])
    outputs = torch.randn(25_000, 2, generator=torch.Generator().manual_seed(0))
    table = predictions_table(objective("classification"), split_of(rows, ("no", "yes")), rows, outputs)
    raw = as_bytes(table)
    assert len(raw) < 1_000_000
    assert raw == as_bytes(table)


# -- files -----------------------------------------------------------------------------------------------


def written(suffix: str) -> str:
    """A file of TEXTS with an id and a gold label each, in an order of its own."""
    rows = [{"label": "good", "id": f"n{i}", "text": text} for i, text in enumerate(TEXTS)]
    path = Path(f"new{suffix}")
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return str(path)


def read_back(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))


def test_files_of_texts_are_read_by_the_runs_columns(peftlab: Peftlab, reviews: Path) -> None:
    folder = finished(reviews)
    expected = load_run(folder).predict(TEXTS)
    for suffix in (".csv", ".tsv", ".jsonl", ".parquet"):
        said = peftlab("predict", folder, "--file", written(suffix), "--json")
        found = [json.loads(line) for line in said.out.splitlines()]
        assert found == [{"id": f"n{i}"} | row for i, row in enumerate(expected)], suffix
        out = Path(f"out{suffix}")
        assert peftlab("predict", folder, "--file", f"new{suffix}", "--output", out).status == 0
        rows = read_back(out)
        assert [(row["id"], row["text"], row["label"]) for row in rows] == [
            (f"n{i}", row["text"], row["label"]) for i, row in enumerate(expected)
        ]
        before = out.read_bytes()
        again = peftlab("predict", folder, "--file", f"new{suffix}", "--output", out)
        assert again.status == 2
        assert "is there already" in again.err
        assert out.read_bytes() == before


def test_files_that_cannot_be_read_by_column(peftlab: Peftlab, reviews: Path) -> None:
    folder = finished(reviews)
    Path("other.csv").write_text("body,n\nfine,1\n")
    Path("gaps.csv").write_text("text,id\nfine,1\n,2\n ,3\n")
    Path("lines.txt").write_text("text,label\n")
    for typed, said in (
        (["--file", "other.csv"], "no column 'text'"),
        (
            ["--file", "other.csv", "--text-column", "Body"],
            "Did you mean 'body'? The run was trained on the column 'text'",
        ),
        (["--file", "gaps.csv"], "gaps.csv, row 2 (line 3): the text (column 'text') is empty"),
        (["--file", "other.csv", "--text-column", "body", "--id-column", "m"], "--id-column m"),
        (["--file", "other.csv", "--second-column", "n"], "trained on single texts"),
        (["--file", "lines.txt", "--id-column", "n"], "goes with --file and a table"),
        (["--text", "fine", "--output", "x.xlsx"], "unknown suffix '.xlsx'. Allowed: .csv"),
        (["--text", "fine", "--output", "no/x.csv"], "there is no folder no"),
    ):
        result = peftlab("predict", folder, *typed)
        assert result.status == 2, typed
        assert said in result.err
    ids = peftlab("predict", folder, "--file", "other.csv", "--text-column", "body", "--id-column", "n", "--json")
    assert json.loads(ids.out)["n"] == "1"


def test_a_text_is_no_formula_of_a_spreadsheet(scratch: Path) -> None:
    rows = [{"text": "=HYPERLINK(1)", "label": "-1", "probabilities": {"@a": 0.5}}]
    for suffix, text in ((".csv", "'=HYPERLINK(1)"), (".tsv", "'=HYPERLINK(1)"), (".jsonl", "=HYPERLINK(1)")):
        write_rows(scratch / f"rows{suffix}", rows)
        (row,) = read_back(scratch / f"rows{suffix}")
        assert (row["text"], row["label"]) == (text, "-1"), suffix


def test_a_gpu_that_is_too_small_is_told(peftlab: Peftlab, reviews: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = finished(reviews)

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(TextClassifierBackbone, "forward", full)
    for command in (("predict", folder, "--text", "fine"), ("evaluate", folder)):
        result = peftlab(*command)
        assert result.status == 2, command
        assert "Tried to allocate 2.00 GiB. Lower data.batch_size" in result.err
        assert "Traceback" not in result.err


def test_evaluate_writes_a_row_a_text(peftlab: Peftlab, reviews: Path) -> None:
    folder = finished(reviews)
    assert peftlab("evaluate", folder, "--predictions", "tested.csv").status == 0
    rows, kept = read_back(Path("tested.csv")), read_predictions(RunFolder(folder)).to_pylist()
    texts = load_run(folder).config.data.load().test.texts
    assert [(row["text"], row["gold"], row["predicted"], row["hash"]) for row in rows] == [
        (text, row["gold"], row["predicted"], row["hash"]) for text, row in zip(texts, kept, strict=True)
    ]
    assert peftlab("evaluate", folder, "--predictions", "tested.csv").status == 2
