"""Any labelled set: folders of ``save_to_disk``, and the hub, which a local server stands in for."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from peftlab.composition import checked
from peftlab.data.hub_set import HubSet
from peftlab.errors import DataError
from peftlab.records.identity import run_key
from tests.data.hub_server import FakeHub

SOURCE = Path(__file__).resolve().parents[2] / "src"


def rows(count: int, names: list[str], name: str = "text") -> Dataset:
    """Row i is of class i modulo the number of classes, in whatever order the split has them."""
    features = Features({"text": Value("string"), "label": ClassLabel(names=names), "id": Value("int64")})
    kinds = sorted(names)
    labels = [names.index(kinds[i % len(kinds)]) for i in range(count)]
    cells = {"text": [f"{name} {i}" for i in range(count)], "label": labels, "id": list(range(count))}
    return Dataset.from_dict(cells, features=features)


def saved(path: Path, data: Any) -> str:
    data.save_to_disk(str(path))
    return str(path)


def test_a_folder_keeps_its_names_and_its_splits(tmp_path: Path) -> None:
    """Numbers mean the names of their own split, whose order may be another; names may be numbers themselves."""
    data = DatasetDict({"train": rows(12, ["3", "1", "2"]), "dev": rows(6, ["1", "2", "3"], "dev")})
    splits = HubSet(id=saved(tmp_path / "s", data)).load()
    assert splits.label_names == ("3", "1", "2")
    for texts in (splits.train, splits.test):
        for text, label in zip(texts.texts, texts.labels, strict=True):
            assert splits.label_names[label] == ["1", "2", "3"][int(text.split()[1]) % 3]
    assert splits.validation.texts == [f"dev {i}" for i in range(6)]
    assert [splits.label_names[label] for label in splits.validation.labels] == ["1", "2", "3"] * 2
    assert splits.test_kind == "hold-out of the train split of s"
    assert len(splits.test) == 2


def test_a_data_set_without_splits_and_hidden_labels(tmp_path: Path) -> None:
    alone = HubSet(id=saved(tmp_path / "alone", rows(20, ["a", "b"]))).load()
    assert {len(alone.train), len(alone.validation), len(alone.test)} == {14, 2, 4}
    hidden = rows(4, ["a", "b"]).map(lambda _: {"label": -1})
    both = saved(tmp_path / "both", DatasetDict({"train": rows(20, ["a", "b"]), "test": hidden}))
    splits = HubSet(id=both).load()
    assert splits.test_kind.endswith("whose test labels are hidden")
    assert splits.provenance["splits_without_labels"] == ["test"]
    assert splits.test.texts == alone.test.texts


def test_numbers_and_pairs(tmp_path: Path) -> None:
    cells = {
        "a": [f"a {i}" for i in range(10)],
        "b": [f"b {i}" for i in range(10)],
        "score": [i / 2 for i in range(10)],
    }
    folder = saved(tmp_path / "p", Dataset.from_dict(cells))
    splits = HubSet(id=folder, text_column="a", second_column="b", label_column="score", objective="regression").load()
    for text, value in zip(splits.train.texts, splits.train.labels, strict=True):
        number = int(text.split()[-1])
        assert (text, value) == (f"a {number}\x1eb {number}", number / 2)


def test_a_folder_is_known_by_its_content(tmp_path: Path) -> None:
    def key(folder: str) -> str:
        return run_key(checked(["data=hub", f"data.id={folder}", "backbone=tiny"]))

    first = saved(tmp_path / "first", rows(12, ["a", "b"]))
    again = saved(tmp_path / "again", rows(12, ["a", "b"]))
    assert key(first) == key(again)
    assert key(saved(tmp_path / "swapped", rows(12, ["b", "a"]))) != key(first)
    assert key(saved(tmp_path / "other", rows(12, ["a", "b"], "word"))) != key(first)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"id": "{}/nowhere"}, "there is no such folder"),
    ({"id": "{}/plain"}, "has not written"),
    ({"id": "{}/plain/file.txt"}, "this is a file"),
    (
        {"text_column": "txt"},
        "no column 'txt' (data.text_column). Columns there are: id, label, lists, text. Did you mean 'text'",
    ),
    ({"text_column": "id"}, "column 'id' (data.text_column) holds Value('int64'); a text a row is wanted"),
    ({"label_column": "lists"}, "column 'lists' (data.label_column) holds List"),
    ({"second_column": "pair"}, "no column 'pair' (data.second_column)"),
    ({"objective": "regression"}, "the label 'a' (column 'label') is no number"),
    ({"config": "x"}, "data.config=x belongs to a hub id"),
    ({"revision": "x"}, "data.revision=x belongs to a hub id"),
    ({"id": "{}/damaged"}, "cannot read"),
    ({"id": "{}/cut"}, "is missing. Save the data set again"),
]


@pytest.mark.parametrize(("given", "said"), WRONG, ids=[said[:30] for _, said in WRONG])
def test_what_cannot_be_used_is_one_message(tmp_path: Path, given: dict[str, Any], said: str) -> None:
    data = rows(8, ["a", "b"]).add_column("lists", [[1]] * 8)
    whole = saved(tmp_path / "whole", data)
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain/file.txt").write_text("text")
    for name in ("damaged", "cut"):
        saved(tmp_path / name, data)
        (file,) = (tmp_path / name).glob("*.arrow")
        file.write_bytes(file.read_bytes()[:100]) if name == "damaged" else file.unlink()
    config = {"id": whole} | {key: value.replace("{}", str(tmp_path)) for key, value in given.items()}
    with pytest.raises(DataError) as caught:
        HubSet(**config).load()
    assert said in str(caught.value)


def test_bad_rows_of_a_folder_are_named_together(tmp_path: Path) -> None:
    data = Dataset.from_dict({"text": ["a", "", "c", None, "e"] * 6, "label": ["x", "y", None, "x", "y"] * 6})
    with pytest.raises(DataError) as caught:
        HubSet(id=saved(tmp_path / "s", data)).load()
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("s, train split, row 1 (counted from 0): the text (column 'text') is empty")
    assert lines[1] == "18 of 30 rows cannot be used; the others:"
    assert lines[2] == f"  {', '.join(f'row {i}' for i in range(30) if i % 5 in (1, 3) and i > 1)}: the same"
    assert lines[3].startswith("  row 2, row 7, row 12,")


# -- the hub -------------------------------------------------------------------------------------------

LOAD = """
import json, sys
from peftlab.data.hub_set import HubSet
from peftlab.errors import DataError
answers = []
for config in json.loads(sys.argv[1]):
    try:
        splits = HubSet(**config).load()
        kinds = {"train_kind": splits.train_kind, "test_kind": splits.test_kind, "labels": splits.label_names}
        answers.append(splits.provenance | kinds | {"texts": sorted(splits.train.texts)})
    except DataError as error:
        answers.append({"error": str(error)})
print(json.dumps(answers))
"""
README = """---
configs:
- {config_name: easy, data_files: [{split: train, path: easy/train.parquet}, {split: test, path: easy/test.parquet}]}
- {config_name: hard, data_files: [{split: train, path: hard/train.parquet}]}
---
"""


def parquet(texts: list[str | None], labels: list[Any]) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table({"sentence": texts, "topic": labels}), stream)
    return stream.getvalue()


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What one process says of each of ASKED; starting it takes seconds."""
    train = parquet([f"row {i}" for i in range(20)] + ["", "no label", None], ["x", "y"] * 10 + ["x", None, "y"])
    with FakeHub() as hub:
        hub.add_dataset("some/one", {"train.parquet": train})
        easy, test = parquet(["a", "b", "c", "d"], ["x", "y"] * 2), parquet(["e", "f"], ["y", "x"])
        hub.add_dataset(
            "some/many",
            {
                "README.md": README.encode(),
                "easy/train.parquet": easy,
                "easy/test.parquet": test,
                "hard/train.parquet": train,
            },
        )
        environment = hub.environment(tmp_path_factory.mktemp("hf"), PYTHONPATH=str(SOURCE))
        command = [sys.executable, "-c", LOAD, json.dumps([config for config, _ in ASKED])]
        done = subprocess.run(
            command, env=environment, cwd=tmp_path_factory.mktemp("cwd"), capture_output=True, text=True, timeout=300
        )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


COLUMNS = {"text_column": "sentence", "label_column": "topic"}
ASKED: list[tuple[dict[str, str], str]] = [
    ({"id": "some/one", **COLUMNS}, ""),
    ({"id": "some/many", "config": "easy", **COLUMNS}, ""),
    ({"id": "some/many", **COLUMNS}, "data.config=null: some/many has the configurations easy, hard. Choose one"),
    ({"id": "some/many", "config": "eassy", **COLUMNS}, "has the configurations easy, hard. Did you mean 'easy'"),
    ({"id": "some/none"}, "data.id=some/none: the hub has no such data set"),
    ({"id": "some/one", "revision": "v9"}, "data.revision=v9: some/one has no such branch"),
    ({"id": "some/one"}, "there is no column 'text' (data.text_column). Columns there are: sentence, topic"),
    ({"id": "not an id"}, "data.id=not an id is not a repository id"),
]  # fmt: skip


@pytest.mark.whole
def test_rows_of_the_hub_without_text_or_label_are_left_out_and_counted(answers: list[dict[str, Any]]) -> None:
    found = answers[0]
    left_out = {"without text": 2, "without label": 1}
    assert found["rows_left_out"] == {"some/one, train split": left_out}
    assert found["train_kind"].startswith(
        "the train split of some/one (20 rows), 2 rows without text, 1 row without label left out"
    )
    assert found["rows"] == {"train": 14, "validation": 2, "test": 4}
    assert found["labels"] == ["x", "y"]
    assert len(found["hub_commit"]) == 40


@pytest.mark.whole
def test_one_of_several_configurations(answers: list[dict[str, Any]]) -> None:
    found = answers[1]
    assert found["hub_config"] == "easy"
    assert found["test_kind"] == "the test split of some/many easy (2 rows)"


@pytest.mark.whole
def test_what_the_hub_does_not_have(answers: list[dict[str, Any]]) -> None:
    for found, (config, said) in zip(answers, ASKED, strict=True):
        assert said in found.get("error", ""), (config, found)
