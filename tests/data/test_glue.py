from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from peftlab.data.glue import GLUE
from peftlab.errors import ConfigError, DataError
from peftlab.pairs import paired
from peftlab.schema import validate
from tests.conftest import Peftlab, run_folder
from tests.data.hub_server import FakeHub
from tests.data.test_data_sets import write
from tests.data.test_hub import SOURCE

LOAD = """
import json, sys
from peftlab.data.glue import GLUE
from peftlab.errors import DataError
try:
    splits = GLUE(**json.loads(sys.argv[1])).load()
    answer = splits.provenance | {"test_texts": splits.test.texts, "test_labels": splits.test.labels}
    print(json.dumps(answer | {"train_texts": splits.train.texts, "label_names": splits.label_names}))
except DataError as error:
    print(json.dumps({"error": str(error)}))
"""
CARD = """---
dataset_info:
{infos}configs:
{configs}---
"""
INFO = """- config_name: {task}
  features:
{columns}  - name: label
    dtype: {{class_label: {{names: {{'0': {names[0]}, '1': {names[1]}}}}}}}
  - {{name: idx, dtype: int32}}
"""
CONFIG = """- config_name: {task}
  data_files:
  - {{split: train, path: {task}/train-*}}
  - {{split: validation, path: {task}/validation-*}}
  - {{split: test, path: {task}/test-*}}
"""
CLASSES = {"cola": ("unacceptable", "acceptable"), "sst2": ("negative", "positive")}
COLUMNS = {"rte": ("sentence1", "sentence2")}


def like_glue(classes: dict[str, tuple[str, str]]) -> dict[str, bytes]:
    """A repository of several tasks whose test rows carry the label -1, as the published one's do."""
    infos = ""
    for task, names in classes.items():
        columns = "".join(f"  - {{name: {name}, dtype: string}}\n" for name in COLUMNS.get(task, ("sentence",)))
        infos += INFO.format(task=task, names=names, columns=columns)
    files = {"README.md": CARD.format(infos=infos, configs="".join(CONFIG.format(task=t) for t in classes)).encode()}
    for task in classes:
        for split, rows in (("train", 20), ("validation", 6), ("test", 4)):
            sink = pa.BufferOutputStream()
            labels = [-1 if split == "test" else i % 2 for i in range(rows)]
            columns: dict[str, Any] = {
                name: [f"{task} {split} {i}{' second' * number}" for i in range(rows)]
                for number, name in enumerate(COLUMNS.get(task, ("sentence",)))
            } | {"label": labels}
            pq.write_table(pa.table(columns | {"idx": pa.array(range(rows), pa.int32())}), sink)
            files[f"{task}/{split}-00000-of-00001.parquet"] = sink.getvalue().to_pybytes()
    return files


def load(hub: FakeHub, home: Path, env: dict[str, str] | None = None, **config: str) -> dict[str, Any]:
    environment = hub.environment(home, PYTHONPATH=str(SOURCE), **(env or {}))
    command = [sys.executable, "-W", "error", "-c", LOAD, json.dumps({"hub_id": "someone/glue"} | config)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize(("task", "names"), CLASSES.items())
def test_test_is_the_validation_file(tmp_path: Path, task: Any, names: tuple[str, str]) -> None:
    files = {split: write(tmp_path, f"{split}.csv", rows, split) for split, rows in (("train", 20), ("validation", 6))}
    write(tmp_path, "test.csv", 4, "unlabelled in GLUE")
    config = GLUE(task=task, source="local", path=str(tmp_path))
    splits = config.load()
    assert config.files() == {"train": [files["train"]], "test": [files["validation"]]}
    assert splits.test.texts == [f"validation {i}" for i in range(6)]
    assert splits.test_kind == "validation file used as test (6 rows)"
    assert splits.label_names == names
    assert splits.provenance["rows"] == {"train": 18, "validation": 2, "test": 6}
    assert {text.split()[0] for text in splits.validation.texts} == {"train"}


def test_a_task_brings_its_objective(peftlab: Peftlab) -> None:
    assert validate({"task": "stsb"}, GLUE, "data").objective == "regression"
    assert validate({"task": "cola"}, GLUE, "data").objective == "classification"
    with pytest.raises(ConfigError, match=r"data\.objective=regression is not what these labels are for"):
        validate({"task": "cola", "objective": "regression"}, GLUE, "data")
    typo = peftlab("train", "data=glue", "data.task=colla")
    assert (typo.status, "Did you mean 'cola'?" in typo.err) == (2, True)


def test_a_folder_without_validation(tmp_path: Path) -> None:
    write(tmp_path, "train.csv", 4)
    with pytest.raises(DataError, match=r"no validation file.*It holds: train\.csv.*Expected: train and validation"):
        GLUE(source="local", path=str(tmp_path)).load()


def test_each_task_comes_from_its_own_part_of_the_hub(tmp_path: Path) -> None:
    """One story: the tasks share a commit and a cache, and must not be taken for each other."""
    with FakeHub() as hub:
        commit = hub.add_dataset("someone/glue", like_glue(CLASSES))
        sst2 = load(hub, tmp_path)
        assert sst2["source"] == f"hub someone/glue@{commit}"
        assert sst2["data_set"] == "GLUE SST-2"
        assert sst2["test_texts"] == [f"sst2 validation {i}" for i in range(6)]
        assert sst2["test_labels"] == [0, 1] * 3
        assert set(sst2["datasets_fingerprints"]) == {"train", "validation"}
        offline = {"HF_HUB_OFFLINE": "1"}
        assert "is not cached" in load(hub, tmp_path, offline, task="cola")["error"]
        cola = load(hub, tmp_path, task="cola")
        assert cola["label_names"] == ["unacceptable", "acceptable"]
        assert all(text.startswith("cola train") for text in cola["train_texts"])
        for task, first in (("sst2", sst2), ("cola", cola)):
            again = load(hub, tmp_path, offline, task=task)
            assert "HF_HUB_OFFLINE" in again["hub_read_from_cache_because"]
            assert again["test_texts"] == first["test_texts"]
        hub.add_dataset("someone/pairs", like_glue({"rte": ("entailment", "not_entailment")}))
        pairs = load(hub, tmp_path, hub_id="someone/pairs", task="rte")
        assert pairs["test_texts"] == [paired(f"rte validation {i}", f"rte validation {i} second") for i in range(6)]
        swapped = like_glue({"sst2": ("positive", "negative")})
        hub.add_dataset("someone/swapped", swapped)
        error = load(hub, tmp_path, hub_id="someone/swapped")["error"]
        assert "sst2 train split: the classes are positive, negative" in error


def test_the_task_is_part_of_the_key(peftlab: Peftlab, tmp_path: Path) -> None:
    for split, rows in (("train", 40), ("validation", 16)):
        write(tmp_path, f"{split}.csv", rows, split)
    common = ["data=glue", "data.source=local", f"data.path={tmp_path}", "backbone=tiny", "logger=none", "name=glue"]
    keys = {peftlab("check", *common, f"data.task={task}").out.splitlines()[-1] for task in CLASSES}
    assert len(keys) == 2
    trained = peftlab("train", *common, "data.task=cola", "trainer.max_epochs=1", "data.max_length=16")
    assert trained.status == 0, trained.err
    assert "validation file used as test (16 rows)" in trained.out
    record = json.loads((run_folder("glue") / "record.json").read_text())
    assert record["data"]["label_names"] == ["unacceptable", "acceptable"]
    assert record["metrics"]["test"]["rows"] == 16


@pytest.mark.parametrize(
    ("task", "test_labels", "train_rows"), [("sst2", {0: 428, 1: 444}, 67_349), ("cola", {0: 322, 1: 721}, 8_551)]
)
def test_the_real_ones(real_data: Path, task: Any, test_labels: dict[int, int], train_rows: int) -> None:
    if not (real_data / task).is_dir():
        pytest.skip(f"no {task} in the folder of real data")
    splits = GLUE(task=task, source="local", path=str(real_data / task)).load()
    assert (splits.train_kind, splits.test_kind) == ("official train", "official validation split used as test")
    assert Counter(splits.test.labels) == test_labels
    rows = splits.provenance["rows"]
    assert rows["train"] + rows["validation"] == train_rows
    assert rows["validation"] == round(0.1 * train_rows)
    assert not set(splits.train.texts) & set(splits.validation.texts)
