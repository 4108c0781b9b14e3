"""report.tex: short captions, what must be known below the table, and the table's own form for every figure."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from peftlab.report.build import Request, build
from peftlab.report.columns import Column, common_digits
from peftlab.report.render.latex import render_latex
from peftlab.report.render.markdown import render_markdown
from peftlab.report.report import Report
from tests.report.made_up import record, sweep_file, three_methods, write

PERCENT = {"title": "test accuracy", "value": "metrics.test.accuracy", "format": "percent"}
MEMORY = {"title": "memory, MiB", "value": "memory.peak_mib", "format": "number"}
SECONDS = {"title": "seconds", "value": "timing.train_seconds", "format": "seconds"}


def in_percent(folder: Path, **more: Any) -> Report:
    sweep_file(three_methods(folder), **({"columns": [PERCENT, MEMORY, SECONDS]} | more))
    return build(Request((str(folder),)))


def tables(text: str) -> list[str]:
    return re.findall(r"\\begin\{table\}.*?\\end\{table\}", text, flags=re.DOTALL)


def test_a_caption_is_short_and_the_rest_stands_below(scratch: Path) -> None:
    results, compared = tables(render_latex(in_percent(scratch / "t")))
    caption = r"\caption{Three methods. Mean $\pm$ standard deviation (n $-$ 1) over 3 seeds.}"
    assert caption in results
    below = results.partition(r"\end{tabular}")[2]
    for said in ("Means without a deviation: memory, MiB; seconds.", "Dunnett's", "binomial", "Reviews", "Chosen on"):
        assert said in below
        assert said not in results.partition(r"\end{tabular}")[0]
    assert r"\footnotesize" in below
    assert (
        r"\caption{Three methods, against head only. Mean difference in test accuracy (percentage points) over "
        "3 shared seeds.}" in compared
    )
    assert "Bonferroni" in compared.partition(r"\end{tabular}")[2]


def test_labels_are_the_name_of_the_sweep(scratch: Path) -> None:
    results, compared = tables(render_latex(in_percent(scratch / "t", title="A long title of a table in a paper")))
    assert r"\label{tab:t}" in results
    assert r"\label{tab:t-comparison}" in compared


def test_errors_and_differences_have_the_form_of_the_column(scratch: Path) -> None:
    """0.10, 0.12 and 0.10 by seed are a difference of 10.67 points; 400 rows make 2.27 points at 0.71."""
    report = in_percent(scratch / "t")
    low, high = (100 * (p * (1 - p) / 400) ** 0.5 for p in (0.82333, 0.71))
    assert f"standard error of {low:.2f} to {high:.2f} percentage points" in " ".join(report.results.notes)
    compared = tables(render_latex(report))[1]
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
    assert "& n " not in render_latex(report)
    assert report.results.heads[-1].title == "n", "the page chooses seeds, and has it"
    write(folder, [record(0.8, key="lora3", seed=3)])
    report = build(Request((str(folder),)))
    assert report.results.caption == "Mean ± standard deviation (n − 1) over the n seeds of a row."
    assert "| n |" in render_markdown(report)
    assert "4 seeds" in render_latex(report)


def test_values_of_one_seed_are_no_means(scratch: Path) -> None:
    runs = [record(0.8, key="a"), record(0.7, key="b", method="head")]
    report = build(Request((str(write(scratch / "t", runs)),)))
    assert report.results.caption == "Values of one seed each."
    assert not any("deviation" in note for note in report.results.notes)


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
