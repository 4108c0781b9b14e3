"""report.html for people who compare: chosen rows and seeds, groups, differences, curves, copies."""

from __future__ import annotations

import csv
import io
import json
import os
import random
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest

from peftlab.errors import ConfigError
from peftlab.report import run_numbers
from peftlab.report.build import Request, build
from peftlab.report.figures.style import Gallery
from peftlab.report.number_text import Form, common_digits, number_text, plain_number
from peftlab.report.render.environment import FOLDER
from peftlab.report.render.latex import latex_tables
from peftlab.report.render.markdown import markdown_table
from peftlab.report.render.page import render_page
from peftlab.report.render.page_data import page_data
from peftlab.report.report import Report
from peftlab.report.table import Table
from tests.report.made_up import record, sweep_file, three_methods, write
from tests.report.render.browsing import returned

RATES = (0.001, 0.01)
MINUS = "\N{MINUS SIGN}"
SHOWN = """[...document.querySelectorAll("#results, #grouped")].filter((table) => !table.hidden).flatMap((table) =>
  [...table.tBodies].filter((body) => !body.hidden).map((body) =>
    [...body.rows[0].cells].filter((cell) => !cell.matches(".expand")).map((cell) => cell.textContent)))"""


def page_of(report: Report, folder: Path) -> Path:
    page = folder / "page.html"
    page.write_text(render_page(report, Gallery(), folder, files=False), encoding="utf-8")
    return page


def reported(folder: Path, **asked: Any) -> Report:
    return build(Request((str(folder),), **asked))


def runs() -> Iterator[dict[str, Any]]:
    """Two methods at two rates, seeds 0 to 9; accuracies of 1/32 give means that lie between two decimals."""
    drawn = random.Random(1)
    for method in ("lora", "ia3"):
        for rate in RATES:
            for seed in range(10):
                accuracy = drawn.randrange(16, 32) / 32
                yield record(accuracy, key=f"{method}{rate}{seed}", seed=seed, method=method, keys={"optim.lr": rate})


def texts_of(table: Table) -> list[list[str]]:
    return [[cell.text for cell in row.cells] for row in table.rows]


@pytest.fixture
def folder(scratch: Path) -> Path:
    return write(scratch / "t", runs())


def test_figures_are_written_as_those_of_the_report(scratch: Path) -> None:
    drawn = random.Random(0)
    given: list[tuple[list[float], Form, int | None]] = [
        ([-0.00001], "difference", None), ([0.0, 0.0], "difference", None), ([1e22], "number", None)
    ]  # fmt: skip
    forms: tuple[Form, ...] = ("score", "percent", "difference", "seconds", "number")
    for form, digits in product(forms, (None, 0, 1)):
        for n in (1, 2, 3, 8, 17, 130, 300):
            given.append(([drawn.uniform(-1, 1) * 10 ** drawn.randrange(-6, 7) for _ in range(n)], form, digits))
            given.append(([drawn.randrange(-99_999, 99_999) / 32 for _ in range(n)], form, digits))
            given.append(([drawn.randrange(0, 64) / 64 for _ in range(n)], form, digits))
    given += [([float(drawn.randrange(10**7)) for _ in range(n)], "count", None) for n in (1, 2)]
    page = scratch / "numbers.html"
    script = (FOLDER / "page_numbers.js").read_text(encoding="utf-8")
    page.write_text(f"<body><script>{script}</script></body>", encoding="utf-8")
    columns = [
        [
            [drawn.choice((-1, 1)) * drawn.uniform(1, 10) * 10 ** drawn.randrange(low, high) for _ in range(n)]
            for n in (1, 3, 9)
        ]
        for low, high in ((2, 3), (2, 4), (-2, 2), (-6, -4), (-1, 4), (-4, 7))
        for _ in range(8)
    ]
    columns += [[[0.0]], [[]], [[], [3.0], [float(2**70)]], [[9999.5], [0.5]], [[820.9], [819.0]], [[999.96], [1.0]]]
    ties = [number / 8 for number in range(-40, 40)] + [10.0**power * 1.2345 for power in range(-9, 5)] + [0.00012345]
    texts = f"{json.dumps(given)}.map((one) => numberText(...one))"
    digits = f"{json.dumps(columns)}.map(commonDigits)"
    made, plain, common = returned(page, scratch, f"return [{texts}, {json.dumps(ties)}.map(plainNumber), {digits}]")
    assert common == list(map(common_digits, columns))
    assert len(set(common)) > 4
    assert made == [number_text(*one) for one in given]
    assert plain == [plain_number(number) for number in ties]


def test_p_and_interval_are_those_of_scipy(scratch: Path) -> None:
    from scipy.stats import t as student  # type: ignore[import-untyped]
    from scipy.stats import ttest_rel

    drawn = random.Random(2)
    pairs = [[[drawn.gauss(of, 1) for _ in range(n)] for of in (0, 0.7)] for n in (2, 3, 4, 5, 8, 11, 30)]
    quantiles = [float(student.ppf(0.975, freedom)) for freedom in range(1, 30)]
    page = scratch / "numbers.html"
    script = (FOLDER / "page_numbers.js").read_text(encoding="utf-8")
    page.write_text(f"<body><script>{script}</script></body>", encoding="utf-8")
    made = returned(
        page, scratch,
        f"const map = (values) => new Map(values.map((value, seed) => [seed, value]));"
        f"return {json.dumps(pairs)}.map(([a, b]) => compare(map(a), map(b), {quantiles}))",
    )  # fmt: skip
    for (first, second), one in zip(pairs, made, strict=True):
        test = ttest_rel(first, second)
        assert one["p"] == pytest.approx(test.pvalue, rel=1e-9)
        interval = test.confidence_interval(0.95)
        assert one["interval"] == pytest.approx([interval.low, interval.high], rel=1e-9)


def test_groups_are_those_of_by(folder: Path, scratch: Path) -> None:
    page = page_of(reported(folder), scratch)
    for key in ("peft", "optim.lr"):
        made = returned(page, scratch, f"return {SHOWN}", f"by={key}")
        assert made == texts_of(reported(folder, by=(key,)).results)
    accuracies = [one["metrics"]["test"]["accuracy"] for one in runs() if one["key"].startswith("ia3")]
    made = returned(page, scratch, f"return {SHOWN}", "by=peft&q=ia3")
    assert [row[:2] for row in made] == [["ia3", f"{fmean(accuracies):.4f} ± {stdev(accuracies):.4f}"]]


def test_chosen_seeds_alone_are_in_the_figures(folder: Path, scratch: Path) -> None:
    page = page_of(reported(folder), scratch)
    fewer = write(scratch / "fewer", (one for one in runs() if one["seeds"]["seed"] in (1, 4, 7)))
    script = f"""const marks = () => document.querySelectorAll("#results .best, #results .tied").length;
      const [chosen, without, notes] = [{SHOWN}, marks(), document.getElementById("notes").hidden];
      document.getElementById("seeds-all").click();
      return [chosen, without, notes, {SHOWN}, marks()]"""
    chosen, without, notes, everything, marks = returned(page, scratch, script, "seeds=1,4,7")
    assert chosen == texts_of(reported(fewer).results)
    assert without == 0
    assert notes is True
    assert everything == texts_of(reported(folder).results)
    assert marks > 0


def test_percent_and_digits_are_a_columns_choice(scratch: Path) -> None:
    folder = three_methods(scratch / "t")
    columns = [
        {"title": "accuracy", "value": "metrics.test.accuracy", "format": "percent"},
        {"title": "F1 in %", "value": "metrics.test.macro_f1", "format": "percent", "digits": 1},
        {"title": "seconds", "value": "timing.train_seconds", "format": "seconds", "digits": 3},
    ]
    sweep_file(folder, columns=columns)
    report = reported(folder)
    assert [head.title for head in report.results.heads[1:4]] == ["accuracy (%)", "F1 in %", "seconds"]
    head_only = next(row for row in report.results.rows if row.id == "head")
    assert [cell.text for cell in head_only.cells[1:4]] == ["71.00 ± 1.00", "71.0 ± 1.0", "11.000 ± 1.000"]
    assert head_only.cells[1].value == pytest.approx(0.71)
    line = returned(page_of(report, scratch), scratch, f"return {SHOWN}", "seeds=0,2&q=head")[0]
    assert line[1:4] == ["71.00 ± 1.41", "71.0 ± 1.4", "11.000 ± 1.414"]
    sweep_file(folder, columns=[columns[0], {**columns[1], "format": "count"}])
    with pytest.raises(ConfigError, match="digits 1, but its format is 'count'"):
        reported(folder)


def test_a_missing_seed_is_said_of_the_chosen_ones(scratch: Path) -> None:
    folder = three_methods(scratch / "t")
    sweep_file(folder, seeds=[0, 1, 2, 3])
    page = page_of(reported(folder), scratch)
    column = [row[-1] for row in returned(page, scratch, f"return {SHOWN}", "seeds=0,3")]
    assert column == ["1/2 seeds"] * 3
    assert [row[-1] for row in returned(page, scratch, f"return {SHOWN}", "seeds=0")] == ["1 seed"] * 3


def test_the_difference_of_two_rows_is_paired_over_seeds(folder: Path, scratch: Path) -> None:
    report = reported(folder, baseline="peft=ia3 lr=0.001")
    page = page_of(report, scratch)
    rows = [group.label for group in report.rows]
    found = report.comparisons[rows[2]]
    difference = """return [...document.querySelectorAll("#chosen tbody tr")].map((row) =>
      [...row.cells].map((cell) => cell.textContent))"""
    line = returned(page, scratch, difference, "rows=0,2")[0]
    assert line[0] == "test accuracy"
    assert line[3] == "10"
    first, second = ([group.by_seed(report.metric.value) or {} for group in report.rows][i] for i in (0, 2))
    said = [cell.replace(MINUS, "-") for cell in line]
    assert float(said[4]) == pytest.approx(fmean(first[seed] - second[seed] for seed in first), abs=5e-5)
    assert found.p is not None
    assert float(line[6]) == pytest.approx(found.p, abs=6e-4)  # before correction
    from scipy.stats import ttest_rel

    interval = ttest_rel(list(first.values()), list(second.values())).confidence_interval(0.95)
    assert json.loads(said[5].replace("+", "")) == pytest.approx([interval.low, interval.high], abs=5e-5)
    assert returned(page, scratch, difference, "rows=0,1,2") == []


def test_what_cannot_be_paired_says_why(scratch: Path) -> None:
    texts = {"hash": "e" * 64, "rows": {"train": 800, "validation": 100, "test": 300}}
    made = [
        *(record(0.8 + seed / 50, key=f"a{seed}", seed=seed) for seed in (0, 1)),
        *(record(0.8 + seed / 50, key=f"b{seed}", seed=seed, method="ia3") for seed in (2, 3)),
        *(record(0.7, key=f"c{seed}", seed=seed, method="head", data=texts) for seed in (0, 1)),
    ]
    report = reported(write(scratch / "t", made))
    page = page_of(report, scratch)
    order = {group.runs[0].key[0]: number for number, group in enumerate(report.rows)}
    why = """return document.querySelector("#chosen tbody tr").cells[5].textContent"""
    assert returned(page, scratch, why, f"rows={order['a']},{order['b']}") == "no shared seed"
    assert returned(page, scratch, why, f"rows={order['a']},{order['c']}") == "tested on other texts"


COPIED = """return ["latex", "markdown", "csv"].map((kind) => {
  document.querySelector(`[data-copy=${kind}]`).click(); return document.getElementById("copied").value; })"""


def first_table(report: Report) -> str:
    return latex_tables(report)["results.tex"]


def odd(folder: Path) -> Report:
    """A sweep in sections, with labels that LaTeX, Markdown and spreadsheets read as their own."""
    content = sweep_file(three_methods(folder), title="A_title & 50 %")
    labels = ("=1+1 | a_b *c* <b> ~ \\x", "3. 漢 → é “q” & &amp; lora_rank", "- [x](y) `z` $5$")
    for cell, label, section in zip(content["cells"], labels, ("two", "two", "one_1"), strict=True):
        cell["label"], cell["group"] = label, section
    (folder / "sweep.json").write_text(json.dumps(content), encoding="utf-8")
    return reported(folder)


def test_the_whole_table_is_copied_as_the_report_writes_it(folder: Path, scratch: Path) -> None:
    for report, place in ((reported(folder), scratch), (odd(scratch / "odd"), scratch / "odd")):
        latex, markdown, values = returned(page_of(report, place), scratch, COPIED)
        assert latex == first_table(report)
        assert markdown == markdown_table(report.results) + "\n"
        lines = list(csv.reader(io.StringIO(values)))
        place_of_mean = next(i for i, title in enumerate(lines[0]) if title.endswith("accuracy"))
        for line, group in zip(lines[1:], report.rows, strict=True):
            numbers = group.values(report.metric.value)
            assert float(line[place_of_mean]) == pytest.approx(fmean(numbers), rel=1e-14)
            assert float(line[place_of_mean + 1]) == pytest.approx(stdev(numbers), rel=1e-12)
        assert not any(cell.startswith(("=", "- ")) for line in lines for cell in line)


def test_what_is_shown_is_copied_in_its_order(scratch: Path) -> None:
    page = page_of(odd(scratch / "t"), scratch / "t")
    latex, markdown, _ = returned(page, scratch, COPIED, "rows=0,2&only=1&sort=4&dir=descending")
    shown = [line[:6] for line in markdown.splitlines()[2:]]
    assert shown == ["| **tw", "| =1+1", "| **on", r"| \- ["]
    assert "2 of 3 rows." in latex
    assert latex.count(r"  \midrule") == 2  # below the head, and between the two sections
    # sections that sorting takes apart become a column
    latex, markdown, values = returned(page, scratch, COPIED, "sort=4&dir=ascending")
    assert [line.split(" | ")[0] for line in markdown.splitlines()] == [
        "| section",
        "| ---",
        "| two",
        r"| one_1",
        "| two",
    ]
    assert r"\begin{tabular}{@{}llrr@{}}" in latex
    assert [line.split(",")[0] for line in values.splitlines()] == ["section", "two", "one_1", "two"]


def test_a_row_opens_its_curves_and_closes_them_by_keyboard(folder: Path, scratch: Path) -> None:
    script = """const body = document.querySelector("#results tbody"); const button = body.querySelector("button");
      button.click();
      const drawings = [...body.querySelectorAll("svg")];
      const seen = [drawings.map((one) => one.querySelectorAll("path").length), drawings[1].getAttribute("aria-label")];
      const inside = body.querySelector("tr.runs tbody a"); inside.focus();
      inside.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape", bubbles: true }));
      return [...seen, body.rows[1].hidden, document.activeElement === button]"""
    lines, said, hidden, focused = returned(page_of(reported(folder), scratch), scratch, script)
    assert lines == [10, 10]
    assert said.startswith("validation/accuracy over 3 epochs")
    assert hidden is True
    assert focused is True


def test_a_page_holds_so_many_points_and_no_more(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history = [{"epoch": epoch, "train/loss": epoch / 7, "validation/accuracy": 0.5} for epoch in range(1000)]
    made = [record(0.8, key=f"k{seed}", seed=seed, history=history) for seed in range(2)]
    data = page_data(reported(write(scratch / "t", made)), scratch)
    for run in data["rows"][0]["runs"]:
        number, values = run[-1][0]
        places = data["epochs"][number]
        assert len(places) == len(values) == 200
        assert (places[0], places[-1]) == (1, 1000)
        assert values[-1] == pytest.approx(999 / 7, rel=1e-5)
    monkeypatch.setattr(run_numbers, "MOST_POINTS", 30)  # of four curves 10 points each, so that two have room
    curves = [run[-1] for run in page_data(reported(scratch / "t"), scratch)["rows"][0]["runs"]]
    assert [len(values) for _, values in curves[0]] == [10, 10]
    assert curves[1] is None


def test_nothing_scrolls_sideways_in_a_window_of_390(folder: Path, scratch: Path) -> None:
    page_of(reported(folder), scratch)
    outer = scratch / "outer.html"
    outer.write_text('<body><iframe src="page.html#rows=0,2&open=1&by=" width=390 height=800></iframe></body>')
    script = """const frame = document.querySelector("iframe");
      await new Promise((done) => setTimeout(done, 1500));
      const root = frame.contentDocument.documentElement;
      const still = root.scrollWidth <= root.clientWidth;
      const box = frame.contentDocument.querySelector(".scroll");
      return [frame.contentWindow.innerWidth, still, box.scrollWidth > box.clientWidth]"""
    assert returned(outer, scratch, script, "", "--allow-file-access-from-files") == [390, True, True]


@pytest.mark.parametrize("state", ["theme=light&rows=0,2&open=1", "theme=dark&by=peft&seeds=0,1&rows=0,1"])
def test_axe_finds_nothing_serious(folder: Path, scratch: Path, state: str) -> None:
    axe = os.environ.get("AXE_CORE")
    if axe is None:
        pytest.skip("AXE_CORE does not name axe.min.js (npm install axe-core)")
    page = page_of(reported(folder, baseline="peft=ia3 lr=0.001"), scratch)
    source = Path(axe).read_text(encoding="utf-8")
    page.write_text(page.read_text(encoding="utf-8").replace("</head>", f"<script>{source}</script></head>"))
    script = """const found = await axe.run(document); return [found.passes.length,
      found.violations.map(({ id, impact, nodes }) => [impact, id, nodes.slice(0, 3).map((node) => node.html)])]"""
    passes, violations = returned(page, scratch, script, state)
    assert passes > 10
    assert _serious(violations) == []


def _serious(violations: Sequence[Sequence[Any]]) -> list[Any]:
    return [one for one in violations if one[0] in ("serious", "critical")]
