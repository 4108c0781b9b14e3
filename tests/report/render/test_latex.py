"""report.tex: short captions, what must be known below the table, and the table's own form for every figure."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from peftlab.report.build import Request, build
from peftlab.report.columns import Column
from peftlab.report.number_text import common_digits
from peftlab.report.render.latex import latex_tables
from peftlab.report.render.markdown import render_markdown
from peftlab.report.render.paper import ROOM, blocks_of, broken, head_lines, width_of
from peftlab.report.report import Report
from peftlab.report.table import Cell, Head, Row, Section, Table
from tests.report.made_up import record, sweep_file, three_methods, write

PERCENT = {"title": "test accuracy", "value": "metrics.test.accuracy", "format": "percent"}
MEMORY = {"title": "memory, MiB", "value": "memory.peak_mib", "format": "number"}
SECONDS = {"title": "seconds", "value": "timing.train_seconds", "format": "seconds"}


def in_percent(folder: Path, **more: Any) -> Report:
    sweep_file(three_methods(folder), **({"columns": [PERCENT, MEMORY, SECONDS]} | more))
    return build(Request((str(folder),)))


def tables(report: Report) -> list[str]:
    return list(latex_tables(report).values())


def test_a_caption_is_short_and_the_rest_stands_below(scratch: Path) -> None:
    results, compared = tables(in_percent(scratch / "t", columns=[PERCENT, MEMORY, {**SECONDS, "deviation": False}]))
    caption = r"\caption{Three methods. Mean $\pm$ standard deviation (n $-$ 1) over 3 seeds.}"
    assert caption in results
    below = results.partition(r"\end{tabular}")[2]
    for said in ("Means without a deviation: seconds.", "Dunnett's", "binomial", "Reviews", "Chosen on"):
        assert said in below
        assert said not in results.partition(r"\end{tabular}")[0]
    assert r"\footnotesize" in below
    assert (
        r"\caption{Three methods, against head only. Mean difference in test accuracy (percentage points) over "
        "3 shared seeds.}" in compared
    )
    assert "Bonferroni" in compared.partition(r"\end{tabular}")[2]


def test_labels_are_the_name_of_the_sweep(scratch: Path) -> None:
    results, compared = tables(in_percent(scratch / "t", title="A long title of a table in a paper"))
    assert r"\label{tab:t}" in results
    assert r"\label{tab:t-comparison}" in compared


def test_errors_and_differences_have_the_form_of_the_column(scratch: Path) -> None:
    """0.10, 0.12 and 0.10 by seed are a difference of 10.67 points; 400 rows make 2.27 points at 0.71."""
    report = in_percent(scratch / "t")
    low, high = (100 * (p * (1 - p) / 400) ** 0.5 for p in (0.82333, 0.71))
    assert f"standard error of {low:.2f} to {high:.2f} percentage points" in " ".join(report.results.notes)
    compared = tables(report)[1]
    assert r"LoRA & +10.67 & [+6.53, +14.80] & [+10.00, +12.00] & 0.0039 & 0.0078" in compared
    lone = build(Request((str(write(scratch / "one", [record(0.8, key="a")])),)))
    assert "is 0.0200." in " ".join(lone.notes)


def test_an_error_is_never_shown_as_nothing() -> None:
    assert Column(title="a", value="b", digits=2).errors_in_words([0.003]) == "0.003"
    assert Column(title="a", value="b", format="percent", digits=0).errors_in_words([0.003, 0.02]) == "0.3 to 2.0 " + (
        "percentage points"
    )


def test_what_all_rows_say_alike_has_no_column(scratch: Path) -> None:
    folder = three_methods(scratch / "t")
    report = build(Request((str(folder),)))
    assert "| n |" not in render_markdown(report)
    assert "& n " not in tables(report)[0]
    assert report.results.heads[-1].title == "n", "the page chooses seeds, and has it"
    write(folder, [record(0.8, key="lora3", seed=3)])
    report = build(Request((str(folder),)))
    assert report.results.caption == "Mean ± standard deviation (n − 1) over the n seeds of a row."
    assert "| n |" in render_markdown(report)
    assert "4 seeds" in tables(report)[0]


def test_values_of_one_seed_are_no_means(scratch: Path) -> None:
    runs = [record(0.8, key="a"), record(0.7, key="b", method="head")]
    report = build(Request((str(write(scratch / "t", runs)),)))
    assert report.results.caption == "Values of one seed each."
    assert not any("deviation" in note for note in report.results.notes)


def test_costs_have_their_deviation(scratch: Path) -> None:
    """Ten, eleven and twelve seconds; the memory is that of the method, the same at each seed."""
    results, _ = tables(in_percent(scratch / "t"))
    assert r"full fine-tuning & \textbf{82.33 $\pm$ 1.53} & 600 $\pm$ 0 & 11.0 $\pm$ 1.0 \\" in results
    assert "without a deviation" not in results


def test_what_is_counted_with_the_head_says_so(scratch: Path) -> None:
    """Made-up heads have 100 parameters; of the first run it does not train."""
    runs = [record(0.8, key="a"), record(0.7, key="b", method="head")]
    for path in ("parameters.trainable", "parameters.trainable,parameters.trainable_without_head"):
        folder = scratch / str(len(path))
        notes = " ".join(build(Request((str(write(folder, runs)),), columns=path)).results.notes)
        assert "The head's 100 are counted in: trainable parameters." in notes
    runs[0]["parameters"]["trainable_without_head"] = 1000
    report = build(Request((str(write(scratch / "frozen", runs)),)))
    assert report.with_head == "The head's 100, where it trains, are counted in: trainable parameters."
    runs[1]["parameters"]["trainable_without_head"] = 1000
    assert build(Request((str(write(scratch / "none", runs)),))).with_head == ""
    only = build(Request((str(write(scratch / "only", runs)),), columns="parameters.trainable_without_head"))
    assert not any("head's" in note for note in only.results.notes)


def test_heads_are_as_wide_as_their_columns() -> None:
    heads = (Head(""), Head("peak memory, MiB", number=True), Head("test accuracy", number=True))
    row = Row((Cell("a"), Cell("1,451"), Cell("0.7783 ± 0.0058")))
    assert head_lines(Table(heads, (Section("", (row,)),))) == [[""], ["peak", "memory,", "MiB"], ["test accuracy"]]


def test_columns_that_find_no_room_stand_below(scratch: Path) -> None:
    columns = [{**SECONDS, "title": f"seconds {n}", "digits": 3} for n in range(7)]
    sweep_file(three_methods(scratch / "t"), columns=[PERCENT, *columns])
    report = build(Request((str(scratch / "t"),), columns=None))
    table = report.results.brief
    assert blocks_of(table, head_lines(table)) == [[1, 2, 3, 4], [5, 6, 7, 8]]
    made = latex_tables(report)["results.tex"]
    assert r"\begin{tabular}{@{}lrrrr@{}}" in made
    assert made.count(r"\midrule[\heavyrulewidth]") == 1
    assert [line.count("&") for line in made.splitlines() if line.lstrip().startswith("head only")] == [4, 4]


def test_long_labels_are_broken_and_none_is_taken_for_an_option(scratch: Path) -> None:
    label = "[query,value] " + " ".join(f"key_{n}=value" for n in range(9))
    content = sweep_file(three_methods(scratch / "t"))
    content["cells"][0]["label"], content["cells"][1]["label"] = label, "*"
    (scratch / "t" / "sweep.json").write_text(json.dumps(content), encoding="utf-8")
    made = latex_tables(build(Request((str(scratch / "t"),))))["results.tex"]
    assert r"    \begin{tabular}[t]{@{}l@{}}{}[query,value] key\_0" in made
    assert "    {}* & 0.7100" in made
    lines = broken(label, 130)
    assert " ".join(lines) == label
    assert len(lines) > 2
    assert all(width_of(line) <= 130 < ROOM for line in lines)


LATEX = shutil.which("pdflatex")


@pytest.mark.skipif(LATEX is None, reason="pdflatex is not installed")
@pytest.mark.parametrize("columns", ["onecolumn", "twocolumn"])
def test_each_table_compiles_alone_without_being_shrunk(columns: str, scratch: Path) -> None:
    """In two columns the narrow table stays in one, and the wide one goes over both; nothing sticks out."""
    report = in_percent(scratch / "t")
    for name, text in latex_tables(report).items():
        Path(name).write_text(text, encoding="utf-8")
    Path("paper.tex").write_text(
        rf"\documentclass[{columns}]{{article}}\usepackage{{booktabs}}\begin{{document}}"
        r"\input{results.tex}\input{comparison.tex}\end{document}"
    )
    command = [str(LATEX), "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-1500:]
    assert "Overfull" not in done.stdout
    assert "resizebox" not in "".join(tables(report))


@pytest.mark.parametrize(
    ("means", "digits"),
    [
        ([820.9, 815.2, 819, 814.5], 1),
        ([820.93, 815.18], 1),
        ([3, 5, 10], 0),
        ([0.1, 0.25], 2),
        ([12_345, 9.87], 1),
        ([1234, 56], 0),
        ([0.001, 0.0005], 4),
        ([5000, 0.012], None),
        ([2e-5, 3e-6], None),
        ([-0.5, 2.25], 2),
        ([0, 0], 0),
        ([], None),
    ],
)
def test_numbers_of_a_column_have_one_number_of_digits(means: list[float], digits: int | None) -> None:
    assert common_digits([[mean, mean] for mean in means]) == digits


def test_a_column_of_numbers_is_written_alike(scratch: Path) -> None:
    memory = {"a": 820.9, "b": 819.0, "c": 815.25}
    runs = [record(0.8, key=key, keys={"optim.lr": n + 1.0}, memory={"peak_mib": one}) for n, (key, one) in
            enumerate(memory.items())]  # fmt: skip
    report = build(Request((str(write(scratch / "t", runs)),), columns="memory.peak_mib"))
    assert [row.cells[2].text for row in report.results.rows] == ["820.9", "819.0", "815.2"]


def test_zeros_of_means_stay_where_deviations_need_them() -> None:
    assert common_digits([[2.5, 3.5], [10.0, 10.0]]) == 2  # 3.00 ± 0.71
    assert common_digits([[2.5, 3.5], [10.0, 10.0]], deviation=False) == 0
    assert common_digits([[2.5, 3.0, 3.5]]) == 1
