"""csv files that are not separated by commas, as spreadsheets of many countries write them."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path

import pytest

from peftlab.commands.prediction_files import read_rows
from peftlab.data.delimited import separator_of
from peftlab.data.instructions import Instructions
from peftlab.data.readers import read_pairs, read_table
from peftlab.data.text_files import TextFiles
from peftlab.errors import DataError

ROWS = [
    ("text", "kind, more", "label", "1,5"),
    ('Fine, "really"; yes\nfine', "a|b", "good", "2,5"),
    ("Dull\tfilm – très long", "", "bad", "3,25"),
    ("plain", "x", "good", ""),
]


def written(file: Path, sign: str, *, quoting: int = csv.QUOTE_MINIMAL, mark: str = "", first: str = "") -> Path:
    with file.open("w", newline="", encoding="utf-8") as stream:
        stream.write(mark + first)
        csv.writer(stream, delimiter=sign, quoting=quoting).writerows(ROWS)
    return file


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@pytest.mark.parametrize("sign", [",", ";", "\t", "|"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_the_header_line_says_what_separates_columns(tmp_path: Path, suffix: str, sign: str, quoting: int) -> None:
    table = read_table(written(tmp_path / f"a{suffix}", sign, quoting=quoting, mark="\ufeff"))
    assert table.texts == [row[0] for row in ROWS[1:]]
    assert table.labels == [row[2] for row in ROWS[1:]]
    assert list(table.lines or ()) == [2, 4, 5]
    assert not table.faults


def test_a_first_line_for_excel_is_no_header(tmp_path: Path) -> None:
    table = read_table(written(tmp_path / "a.csv", ";", first="sep=;\r\n"))
    assert table.labels == ["good", "bad", "good"]
    assert list(table.lines or ()) == [3, 5, 6]


@pytest.mark.parametrize(
    "header", ["text,label", "text,label,a;b", "id;x,text,label", '"text","label;text"', "text;label,text,label"]
)
def test_a_file_that_is_separated_as_its_suffix_says_is_read_so(tmp_path: Path, header: str) -> None:
    file = tmp_path / "a.csv"
    file.write_text(f"{header}\n")
    assert separator_of(file, ["text"]) == ","


def test_pairs_and_ids(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id;text;other;label\n7;a, b;c;0\n8;d;e, f;1\n")
    pairs = read_pairs(tmp_path / "a.csv", "text", "other")
    assert (pairs.texts, pairs.seconds, pairs.labels) == (["a, b", "d"], ["c", "e, f"], ["0", "1"])
    rows = read_rows(str(tmp_path / "a.csv"), "text", None)
    assert (rows.id_column, rows.ids) == ("id", ["7", "8"])


def test_columns_that_are_not_there_are_those_of_the_right_separator(tmp_path: Path) -> None:
    file = written(tmp_path / "a.csv", ";")
    with pytest.raises(DataError) as error:
        read_table(file, "Text")
    assert "no column 'Text' (text_column). Columns there are, with the semicolon ';' between them: text, " in str(
        error.value
    )
    assert "Did you mean 'text'?" in str(error.value)


def test_rows_of_another_width_name_the_separator(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text;label\nfine; really;good\n")
    fault = read_table(tmp_path / "a.csv").faults[0]
    assert "row 1 (line 2): 3 fields, but the header has 2 (text, label). A text that contains a semicolon" in fault


def test_quotes_that_can_be_read_in_two_ways(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text;label\n"fine;good\ndull";bad\n"so;good\nso";bad\n')
    with pytest.raises(DataError, match="2 rows or 4"):
        read_table(tmp_path / "a.csv", "text", None)


def test_it_is_said_once_and_recorded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for split, sign in (("train", ";"), ("test", ",")):
        file = tmp_path / f"{split}.csv"
        with file.open("w", newline="") as stream:
            rows = [(f"a, {number}", ("bad", "good")[number % 2]) for number in range(20)]
            csv.writer(stream, delimiter=sign).writerows([("text", "label"), *rows])
    with caplog.at_level(logging.WARNING):
        splits = TextFiles(path=str(tmp_path)).load()
        TextFiles(path=str(tmp_path)).load()
    assert splits.provenance["separator"] == {"train": ";"}
    assert [record.getMessage() for record in caplog.records if record.name.endswith("delimited")] == [
        f"{tmp_path / 'train.csv'}: its columns are separated by the semicolon ';', as the header line has it."
    ]


def test_prompts_and_answers(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("prompt;response\n" + "".join(f"Say, {number};{number}\n" for number in range(20)))
    splits = Instructions(path=str(file)).load()
    assert splits.provenance["separator"] == {"train": ";"}
    assert "Say, " in json.dumps(splits.train.texts)
    file.write_bytes("prompt;response\na;b\n".encode("utf-16"))
    with pytest.raises(DataError, match="UTF-16"):
        Instructions(path=str(file)).load()
