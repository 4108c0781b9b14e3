"""Whose numbers, whose names: labels of several files, rows that cannot be used, classes that are lost."""

from __future__ import annotations

import logging
from pathlib import Path

import pandas
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from peftlab.data.base import Texts
from peftlab.data.given import given_rows
from peftlab.data.labels import SHOWN, by_name, read_rows, to_texts
from peftlab.data.splits import require_all_learned
from peftlab.data.text_files import TextFiles
from peftlab.errors import DataError
from peftlab.objectives.base import objective
from peftlab.raw_rows import RawRows


def write(path: Path, labels: list[str], head: str = "text,label") -> str:
    path.write_text("\n".join([head, *(f"text {i},{label}" for i, label in enumerate(labels))]), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("labels", [["0", "1"], ["1.0", "0.0"], ["true", "false"]])
def test_numbers_are_not_taken_for_names_that_nobody_has_numbered(tmp_path: Path, labels: list[str]) -> None:
    files = {"train": write(tmp_path / "a.csv", ["spam", "ham"] * 10), "test": write(tmp_path / "b.csv", labels)}
    with pytest.raises(DataError, match=r"b\.csv, row 1 \(line 2\): unknown label .* data\.labels=\[<name of 0>"):
        TextFiles(**files).load()
    if "true" not in labels:
        splits = TextFiles(**files, labels=["spam", "ham"]).load()
        assert [splits.label_names[i] for i in splits.test.labels] == [("spam", "ham")[int(float(x))] for x in labels]


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("caf\u00e9", "cafe\u0301"),
        ("hum 1", "hum\u00a01"),
        ("hum 1", "hum  1"),
        ("good", "go\u200bod"),
        ("a1", "a\u200d1"),
    ],
)
def test_names_that_look_alike_are_refused(tmp_path: Path, one: str, two: str) -> None:
    with pytest.raises(DataError, match=r"a\.csv, column label: the labels .* look alike"):
        TextFiles(path=write(tmp_path / "a.csv", [one, two, "other"] * 5)).load()
    files = {"train": write(tmp_path / "a.csv", [one, "other"] * 9), "test": write(tmp_path / "b.csv", [two])}
    with pytest.raises(DataError, match="It looks like"):
        TextFiles(**files).load()


def test_names_that_can_be_told_apart_are_not(tmp_path: Path) -> None:
    names = ["\u0915", "\u0915\u093f", "\u0915\u0940", "e", "\u00e9", "E", "👨\u200d👩", "👨👩"]
    assert set(TextFiles(path=write(tmp_path / "a.csv", names * 10)).load().label_names) == set(names)


def test_names_that_differ_in_case_alone_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They are classes of their own, as they always were; space around them was never a difference."""
    labels = ["HUM"] * 12 + [" HUM "] * 3 + ["hum"] * 5 + ["Straße", "STRASSE"] * 5 + ["loc"] * 5
    with caplog.at_level(logging.WARNING):
        splits = TextFiles(path=write(tmp_path / "a.csv", labels)).load()
    assert splits.label_names == ("HUM", "STRASSE", "Straße", "hum", "loc")
    [said] = [record.getMessage() for record in caplog.records if "upper and lower case" in record.getMessage()]
    assert "a.csv, column label: " in said
    assert "'HUM' (15 rows) and 'hum' (5 rows); 'STRASSE' (5 rows) and 'Straße' (5 rows)" in said
    assert "loc" not in said


def test_more_rows_are_not_asked_for_of_a_label_written_otherwise(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names, classes = ["HUM", "LOC", "hum"], objective("classification")
    with pytest.raises(DataError) as error:
        require_all_learned(classes, Texts(["x", "y"], [0, 1]), names, "a.csv")
    assert str(error.value) == (
        "a.csv: no row left for training has the label hum. Labels that differ in upper and lower case alone are "
        "different ones, and there is hum for HUM: write them alike."
    )
    with pytest.raises(DataError, match=r"hum for HUM: write them alike\. Add such rows"):
        require_all_learned(classes, Texts(["x"], [0]), names, "a.csv")
    file = write(tmp_path / "a.csv", ["a", "b"] * 20 + [f"Rare{i}" for i in range(4)] + [f"rare{i}" for i in range(4)])
    with caplog.at_level(logging.WARNING):
        splits = TextFiles(path=file, test=None, holdout_fraction=0.01, val_fraction=0.3, split_seed=1).load()
    lost = splits.provenance["labels_without_training_rows"]
    twins = [name for name in lost if f"{name[0].swapcase()}{name[1:]}" in set(splits.label_names) - set(lost)]
    assert twins
    [said] = [record.getMessage() for record in caplog.records if "No training row" in record.getMessage()]
    assert all(f"{name} for " in said for name in twins)
    assert ("Give more rows" in said) == (len(twins) < len(lost))


def test_a_label_of_another_file_in_another_case(tmp_path: Path) -> None:
    files = {"train": write(tmp_path / "a.csv", ["HUM", "LOC"] * 9), "test": write(tmp_path / "b.csv", ["hum"])}
    with pytest.raises(DataError, match=r"unknown label 'hum'.*It differs from 'HUM' in upper and lower case alone"):
        TextFiles(**files).load()


def test_rows_of_python_are_named_as_python_counts_them() -> None:
    def said(data: object) -> str:
        with pytest.raises(DataError) as error:
            to_texts(given_rows(data).tables["train"], objective("classification").reader([], ["a", "b"]))
        return str(error.value)

    frame = pandas.DataFrame({"text": ["x", "", "z", ""], "label": list("abab")}, index=[40, 30, 20, 10])
    assert said(frame).startswith("data=DataFrame, row 30 (its index): the text (column 'text') is empty.")
    assert said(frame).endswith("\n  row 10: the same")
    assert frame.loc[30, "text"] == ""
    mixed = frame.set_axis(range(4)).assign(label=[None, "b", "a", "b"])
    assert said(mixed).splitlines()[0].startswith("data=DataFrame, row 0 (its index): the label")
    assert said(mixed).splitlines()[2].startswith("  row 1, row 3: the text (column 'text') is empty.")
    last = pandas.concat([mixed, mixed.iloc[:1].set_axis([4])])
    assert said(last).splitlines()[2] == "  row 4: the same", "as the row in front of it"
    named = frame.set_axis(["q1", "q2", "q3", "q4"])
    assert said(named).startswith("data=DataFrame, row 'q2' (its index): ")
    assert said(frame[2:]).startswith("data=DataFrame, row 10 (its index): "), "of a part of a frame too"
    repeated = frame.set_axis([7, 7, 7, 7])
    assert said(repeated).startswith("data=DataFrame, row 1 (counted from 0; its index repeats itself): ")
    assert said((["x", ""], ["a", "b"])).startswith("data=lists, row 1 (counted from 0): ")
    assert said({"train": (["x", ""], ["a", "b"])}).startswith("data=dict['train'], row 1 (counted from 0): ")
    rows = Dataset.from_dict({"text": ["x", ""], "label": ["a", "b"]})
    assert said(rows).startswith("data=Dataset, row 1 (counted from 0): ")
    assert rows[1]["text"] == ""


def test_all_bad_rows_are_one_message_up_to_twenty() -> None:
    reader = objective("classification").reader([], ["no", "yes"])
    table = RawRows("a.csv", ["text"] * 10 + [""] * 90, [0, 1, "maybe", None, 0] * 20)
    with pytest.raises(DataError) as caught:
        read_rows(table, reader)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("a.csv, row 3: unknown label 'maybe'")
    assert lines[1] == "94 of 100 rows cannot be used; the others:"
    assert lines[-1] == f"  … and {94 - SHOWN} more"
    assert sum(line.count("row ") - line.count("the row ") for line in (lines[0], *lines[2:-1])) == SHOWN


def test_rows_of_others_are_left_out_only_where_something_is_missing() -> None:
    reader = objective("classification").reader([], ["no", "yes"])
    table = RawRows("set", ["a", None, "c", "d"], [0, 1, None, 1], seconds=["x", "y", "z", " "], editable=False)
    texts, left_out = read_rows(table, reader)
    assert (texts.texts, texts.labels) == (["a\x1ex"], [0])
    assert left_out == {"without text": 2, "without label": 1}
    with pytest.raises(DataError, match="unknown label 'maybe'"):
        read_rows(RawRows("set", ["a"], ["maybe"], editable=False), reader)


def test_a_class_without_a_training_row_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = write(tmp_path / "a.csv", ["a", "b"] * 20 + [f"rare{i}" for i in range(8)])
    with caplog.at_level(logging.WARNING):
        splits = TextFiles(path=file, test=None, holdout_fraction=0.01, val_fraction=0.3).load()
    lost = splits.provenance["labels_without_training_rows"]
    assert lost == [n for n in splits.label_names if splits.provenance["rows_by_label"]["train"][n] == 0]
    assert lost
    assert f"No training row is left with the label {', '.join(lost)}" in caplog.text


def test_splits_given_from_python_have_their_own_order_of_names() -> None:
    def rows(names: list[str]) -> Dataset:
        features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
        return Dataset.from_dict({"text": ["x", "y"], "label": [names.index("2"), names.index("1")]}, features=features)

    given = given_rows(DatasetDict({"train": rows(["1", "2"]), "test": rows(["2", "1"])}))
    assert given.labels == ["1", "2"]
    assert given.tables["train"].labels == given.tables["test"].labels == ["2", "1"]
    assert by_name([0, -1, None, 7], ["a"]) == ["a", None, None, 7]
