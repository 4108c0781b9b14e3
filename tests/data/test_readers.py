from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from peftlab.data.labels import to_texts
from peftlab.data.readers import read_review_tree, read_table
from peftlab.errors import DataError
from peftlab.objectives.parts.class_labels import LabelSet, discover_labels

LABELS = LabelSet(("negative", "positive"), {"neg": 0, "pos": 1})
ROWS = [('Fine, "really"\nfine', 1), ("Dull – très long\u2028", 0), ("x" * 200_000, 1)]


def write(file: Path, rows: list[tuple[object, object]]) -> Path:
    if file.suffix == ".parquet":
        pq.write_table(pa.table({"text": [r[0] for r in rows], "label": [r[1] for r in rows]}), file)
    elif file.suffix == ".jsonl":
        lines = [json.dumps({"text": text, "label": label}, ensure_ascii=False) for text, label in rows]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        with file.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream, delimiter="\t" if file.suffix == ".tsv" else ",")
            writer.writerows([("text", "label"), *rows])
    return file


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_form_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    limit = csv.field_size_limit()
    read = to_texts(read_table(write(tmp_path / f"train{suffix}", list(ROWS))), LABELS)
    assert read.texts == [text for text, _ in ROWS]
    assert read.labels == [1, 0, 1]
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_byte_order_mark_blank_lines_and_line_endings(tmp_path: Path, ending: str) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(b"\xef\xbb\xbf" + ending.join(["label,text", "", "1,good", "", "0,bad", ""]).encode())
    assert to_texts(read_table(file), LABELS).texts == ["good", "bad"]
    file = tmp_path / "a.jsonl"
    file.write_bytes((ending + '{"label": 1, "text": "good"}' + ending).encode())
    assert to_texts(read_table(file), LABELS).labels == [1]


@pytest.mark.parametrize(
    ("cell", "index"),
    [
        ("0", 0),
        ("1", 1),
        ("1.0", 1),
        (" pos ", 1),
        ("negative", 0),
        (1, 1),
        (0.0, 0),
        (True, 1),
        ("false", 0),
    ],
)
def test_cells_that_name_a_class(cell: object, index: int) -> None:
    assert LABELS.index(cell) == index


@pytest.mark.parametrize("cell", [2, -1, "2", 0.5, "0.5", "", None, float("nan"), "good", "01", [], {}])
def test_cells_that_name_no_class(cell: object) -> None:
    assert LABELS.index(cell) is None


def test_integer_names_are_names_and_not_indices() -> None:
    stars = LabelSet(("1", "2", "3"))
    assert [stars.index(cell) for cell in ("1", 3, 2.0, "0")] == [0, 2, 1, None]


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        (["10", "9", "1.0"], ("1", "9", "10")),
        ([10, 9, 1], ("1", "9", "10")),
        (["b", "a", "10", " a"], ("10", "a", "b")),
        ([True, False], ("false", "true")),
    ],
)
def test_labels_are_discovered_in_order(tmp_path: Path, cells: list[object], names: tuple[str, ...]) -> None:
    suffix = "jsonl" if isinstance(cells[0], bool | int) else "csv"
    file = write(tmp_path / f"a.{suffix}", [(f"text {i}", cell) for i, cell in enumerate(cells)])
    assert discover_labels([read_table(file)]) == names


HEADER = b"text,label\n"
BAD_FILES = [
    # name, content, what the message says
    ("a.csv", b"", ["a.csv", "file is empty"]),
    ("a.csv", b"\n\n", ["a.csv", "no rows"]),
    ("a.csv", HEADER, ["a.csv", "no rows below the header"]),
    ("a.csv", HEADER + b"fine,1\n  ,0\n", ["a.csv, row 2 (line 3)", "the text (column 'text') is empty"]),
    ("a.csv", HEADER + b'"two\nlines",1\n,0\n', ["a.csv, row 2 (line 4)", "is empty"]),
    (
        "a.csv",
        HEADER + b"fine,\n",
        ["a.csv, row 1 (line 2)", "label (column 'label') is missing", "positive (1)"],
    ),
    ("a.csv", HEADER + b"fine,positiv\n", ["row 1 (line 2)", "'positiv'", "Did you mean 'positive'?"]),
    ("a.csv", HEADER + b"fine,2\n", ["unknown label '2'", "negative (0), positive (1)"]),
    ("a.csv", HEADER + b"fine,1\ncaf\xe9,1\n", ["a.csv, line 3, byte 21", "0xE9 is not UTF-8", "iconv"]),
    ("a.csv", b"\xef\xbb\xbf" + HEADER + b"caf\xe9,1\n", ["a.csv, line 2, byte 17", "0xE9"]),
    ("a.csv", "text,label\n".encode("utf-16"), ["a.csv, line 1", "UTF-16", "Save it as UTF-8"]),
    ("a.csv", HEADER + b"fi\0ne,1\n", ["a.csv, line 2, byte 13", "NUL"]),
    ("a.csv", b"txt,label\nfine,1\n", ["no column 'text'", "txt, label", "Did you mean 'txt'?"]),
    ("a.csv", b"text,label,text\na,1,b\n", ["column 'text' is there twice"]),
    ("a.csv", HEADER + b"fine, really,1\n", ["row 1 (line 2)", "3 fields, but the header has 2", '"quotes"']),
    ("a.tsv", b"text\tlabel\nfine\n", ["a.tsv, row 1 (line 2)", "1 fields", "contains a tab"]),
    (
        "a.csv",
        HEADER + b'fine,1\n"open,1\n',
        ["a.csv, record beginning on line 3", "quote that is not closed"],
    ),
    ("a.csv", b"PAR1....", ["by its content this is a parquet file", "a.parquet"]),
    ("a.parquet", HEADER + b"fine,1\n", ["not a parquet file", "begins with b'text'", ".csv"]),
    ("a.parquet", b"PAR1" + b"x" * 40, ["a.parquet", "damaged parquet file"]),
    (
        "a.jsonl",
        b'{"text": "a", "label": 1}\nnot json\n',
        ["a.jsonl, row 2 (line 2)", "not JSON", "one object"],
    ),
    ("a.jsonl", b'["a", 1]\n', ["row 1 (line 1)", "a list and not an object"]),
    ("a.jsonl", b'\n{"txt": "a", "label": 1}\n', ["row 1 (line 2)", "no column 'text'", "txt, label"]),
    ("a.jsonl", b'{"text": 7, "label": 1}\n', ["row 1 (line 1)", "not a string but 7 (int)"]),
    ("a.jsonl", b'{"text": null, "label": 1}\n', ["row 1 (line 1)", "is empty"]),
    ("a.jsonl", b'{"text": "a", "label": 0.5}\n', ["unknown label 0.5"]),
    ("a.jsonl", b" \n\n", ["only blank lines"]),
    ("a.txt", b"fine\n", ["unknown suffix '.txt'", ".csv, .tsv, .jsonl, .parquet"]),
]


@pytest.mark.parametrize(("name", "content", "said"), BAD_FILES)
def test_a_file_that_cannot_be_used(tmp_path: Path, name: str, content: bytes, said: list[str]) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(DataError) as caught:
        to_texts(read_table(file), LABELS)
    for part in said:
        assert part in str(caught.value)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"text": ["a", None], "label": [0, 1]}, ["row 2", "is empty"]),
        ({"text": ["a", "b"], "label": [0, None]}, ["row 2", "missing"]),
        ({"text": ["a", "b"], "label": [0.0, float("nan")]}, ["row 2", "missing"]),
        ({"text": ["a", "b"], "label": [0, -1]}, ["row 2", "unknown label -1"]),
        ({"text": [1, 2], "label": [0, 1]}, ["row 1", "not a string but 1 (int)"]),
        ({"sentence": ["a"], "label": [0]}, ["no column 'text'", "sentence, label"]),
        ({"text": pa.array([], pa.string()), "label": pa.array([], pa.int64())}, ["no rows"]),
    ],
)
def test_a_parquet_file_that_cannot_be_used(tmp_path: Path, columns: dict[str, object], said: list[str]) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns), file)
    with pytest.raises(DataError) as caught:
        to_texts(read_table(file), LABELS)
    for part in [str(file), *said]:
        assert part in str(caught.value)


def test_a_parquet_file_cut_short(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", [(f"text {i}", i % 2) for i in range(1000)])
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"a\.parquet: a damaged parquet file"):
        read_table(file)


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", [("a", 1)])
    with pytest.raises(DataError, match=r"tain\.csv: there is no such file\..*Did you mean 'train\.csv'"):
        read_table(tmp_path / "tain.csv")
    with pytest.raises(DataError, match="Nor is there a folder"):
        read_table(tmp_path / "nowhere" / "train.csv")


@pytest.mark.parametrize(("label", "said"), [(0.5, "0.5"), ("4.75", "'4.75'"), ([1], r"\[1\]")])
def test_scores_are_no_classes(tmp_path: Path, label: object, said: str) -> None:
    file = write(tmp_path / "a.jsonl", [("a", 1), ("b", label)])
    with pytest.raises(DataError, match=rf"a\.jsonl, row 2 \(line 2\): the label .*{said}"):
        discover_labels([read_table(file)])


def review_tree(folder: Path) -> Path:
    for topic, names in {"neg": ["2_1.txt", "10_3.txt"], "pos": ["0_9.txt"], "unsup": ["0_0.txt"]}.items():
        (folder / topic).mkdir(parents=True)
        for name in names:
            (folder / topic / name).write_text(f"{topic} {name}", encoding="utf-8")
    return folder


def test_the_review_tree_is_read_in_order_of_ids(tmp_path: Path) -> None:
    read = to_texts(read_review_tree(review_tree(tmp_path)), LABELS)
    assert read.texts == ["neg 2_1.txt", "neg 10_3.txt", "pos 0_9.txt"]
    assert read.labels == [0, 0, 1]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("neg/readme.txt", b"hello", "ID_RATING.txt"),
        ("neg/5_1.txt", b"caf\xe9", "line 1, byte 3: 0xE9 is not UTF-8"),
        ("pos/5_9.txt", b" \n", "the review is empty"),
    ],
)
def test_a_bad_file_in_the_review_tree(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (review_tree(tmp_path) / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_review_tree(tmp_path)
    assert str(tmp_path / name) in str(caught.value)
    assert said in str(caught.value)


def plain_quotes(file: Path) -> list[tuple[str, str]]:
    """GLUE's manner: tab separated, a quote is a character; some open in one row and close in another."""
    rows = [
        ("The plot is thin.", "0"),
        ('"It was a great night.', "1"),
        ("We left.", "0"),
        ('I would see it again."', "1"),
    ] * 3
    file.write_text("text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows), encoding="utf-8")
    return rows


def test_plain_quotes_in_a_tsv_lose_no_row(tmp_path: Path) -> None:
    rows = plain_quotes(tmp_path / "a.tsv")
    with (tmp_path / "a.tsv").open(encoding="utf-8", newline="") as file:
        expected = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    table = read_table(tmp_path / "a.tsv")
    assert list(zip(table.texts, table.labels, strict=True)) == rows == [tuple(row.values()) for row in expected]
    assert list(table.lines or ()) == list(range(2, 14))


@pytest.mark.parametrize("text", ['"Good", he said', '5" of snow', '"', 'a ""b""'])
def test_single_plain_quotes_in_a_tsv(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.tsv").write_text(f"text\tlabel\n{text}\tx\nplain\ty\n", encoding="utf-8")
    assert read_table(tmp_path / "a.tsv").texts == [text, "plain"]


@pytest.mark.parametrize(("suffix", "delimiter"), [("tsv", "\t"), ("csv", ",")])
def test_quoted_fields_are_read_as_they_are_written(tmp_path: Path, suffix: str, delimiter: str) -> None:
    texts = [f"a{delimiter}b", "two\nlines", 'she said "no"', "plain"]
    with (tmp_path / f"a.{suffix}").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerows([("text", "label"), *((text, "x") for text in texts)])
    assert read_table(tmp_path / f"a.{suffix}").texts == texts


def test_quotes_of_a_csv_that_can_be_read_in_two_ways(tmp_path: Path) -> None:
    text = 'text,label\ndull,0\nfine,1\n"It was a great night,1\nWe left,0\nI would see it again.",1\n'
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.csv, record beginning on line 4: .* 3 rows or 5"):
        read_table(tmp_path / "a.csv")
