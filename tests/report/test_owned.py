"""What a report may replace, and cells of CSV files that a spreadsheet would run."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import pytest

from peftlab.errors import ConfigError
from peftlab.report.figures.spectra import Spectrum, draw_inspection
from peftlab.report.owned import MANIFEST, require_own_picture, write_report
from peftlab.report.table import csv_text


def test_a_report_replaces_what_a_report_wrote(scratch: Path) -> None:
    write_report(scratch / "docs", {"report.md": "one", "a.png": b"1"}, chosen=True)
    write_report(scratch / "docs", {"report.md": "two", "new.csv": "x"}, chosen=True)
    write_report(scratch / "docs", {"report.md": "three", "a.png": b"2"}, chosen=True)
    assert (scratch / "docs/report.md").read_text() == "three"
    assert set(json.loads((scratch / "docs" / MANIFEST).read_text())["files"]) == {"report.md", "a.png", "new.csv"}


def test_what_a_report_has_no_more_is_removed(scratch: Path) -> None:
    tables = {"results.tex": "r", "comparison.tex": "c", "report.md": "one", "noted.tex": "n"}
    write_report(scratch, tables, chosen=True)
    (scratch / "noted.tex").write_text("n, and a remark of mine")
    (scratch / "own.tex").write_text("mine")
    write_report(scratch, {"results.tex": "r"}, chosen=True, kinds=(".tex",))
    assert {path.name for path in scratch.glob("*.*")} == {
        "results.tex", "noted.tex", "own.tex", "report.md", MANIFEST,
    }  # fmt: skip


def test_a_list_of_files_removes_none_elsewhere(scratch: Path) -> None:
    mine = scratch / "mine.tex"
    mine.write_text("mine")
    known = {"format": 1, "files": {"../mine.tex": [hashlib.sha256(b"mine").hexdigest()]}}
    (scratch / "report").mkdir()
    (scratch / "report" / MANIFEST).write_text(json.dumps(known))
    write_report(scratch / "report", {"results.tex": "r"}, chosen=True, kinds=(".tex",))
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("before", [{}, {"report.md": "one"}])
def test_somebodys_own_file_stays(before: dict[str, str], scratch: Path) -> None:
    if before:
        write_report(scratch, before, chosen=True)
    (scratch / "curves.png").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds curves\.png, which no report"):
        write_report(scratch, {"report.md": "two", "curves.png": b"2"}, chosen=True)
    assert (scratch / "curves.png").read_text() == "mine"
    assert (scratch / "report.md").exists() == bool(before)
    (scratch / "curves.png").unlink()
    write_report(scratch, {"report.md": "two", "curves.png": b"2"}, chosen=True)
    (scratch / "report.md").write_text("two, and a remark of mine")
    with pytest.raises(ConfigError, match=r"holds report\.md"):
        write_report(scratch, {"report.md": "three"}, chosen=False)


def test_reports_of_earlier_versions_are_replaced(scratch: Path) -> None:
    (scratch / "report.json").write_text(json.dumps({"format": 1, "peftlab": "0", "metric": "m", "groups": []}))
    (scratch / "report.md").write_text("old")
    write_report(scratch, {"report.md": "new"}, chosen=True)
    assert (scratch / "report.md").read_text() == "new"


def test_a_picture_of_somebody_elses_stays(scratch: Path) -> None:
    mine, drawn = scratch / "photo.png", scratch / "drawn.png"
    mine.write_text("mine")
    with pytest.raises(ConfigError, match=r"photo\.png is there"):
        require_own_picture(mine)
    draw_inspection(drawn, [Spectrum("layer.0.query", [2.0, 1.0], 0.1)], title="t")
    require_own_picture(drawn)
    require_own_picture(scratch / "absent.png")


@pytest.mark.parametrize("text", ["=cmd|' /C calc'!A0", "@SUM(A1)", "+1+cmd", "-2+3", "\t=A1", " =A1"])
def test_no_cell_is_a_formula(text: str) -> None:
    (head,), (cell,) = csv.reader(csv_text([text], [[text]]).splitlines())
    assert head == cell == f"'{text}"


def test_numbers_stay_numbers() -> None:
    lines = [["-0.5", -0.5, "+1e-3", None, "a=b", "-inf"]]
    assert csv_text(["x"] * 6, lines).splitlines()[1] == "-0.5,-0.5,+1e-3,,a=b,-inf"
