"""Comparisons with the best row: against scipy's procedures where these apply, and by simulation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from peftlab.report.best import AgainstBest, against_best, studentized_range
from peftlab.report.build import Request, build
from peftlab.report.legends import legend
from tests.report.made_up import record, sweep_file, write


def samples(seed: int, rows: int, n: int, spread: float = 1.0) -> list[list[float]]:
    return np.random.default_rng(seed).normal(0.0, spread, (rows, n)).tolist()  # type: ignore[no-any-return]


def test_quantiles_are_those_of_simulated_ranges() -> None:
    """12 values over a deviation of 4 degrees of freedom; the standard error of the share is 0.0005."""
    draw = np.random.default_rng(0)
    ranges = np.ptp(draw.normal(size=(200_000, 12)), axis=1) / np.sqrt(draw.chisquare(4, 200_000) / 4)
    assert np.mean(ranges > studentized_range(12, 4, 0.05)) == pytest.approx(0.05, abs=0.002)


@pytest.mark.parametrize("n", [2, 5, 30])
def test_two_rows_are_compared_as_by_the_t_distribution(n: int) -> None:
    """With two rows of n seeds the quantile is √2 times Student's with n - 1 degrees: the test of Cochran and Cox."""
    first, second = samples(n, 2, n)
    (found,) = against_best(first, [second])
    error = np.sqrt((np.var(first, ddof=1) + np.var(second, ddof=1)) / n)
    assert found.needed == pytest.approx(scipy.stats.t.ppf(0.975, n - 1) * error, rel=1e-6)


def test_with_many_seeds_it_is_tukeys_test_of_all_pairs() -> None:
    rows = samples(1, 6, 4000)
    found = against_best(rows[0], rows[1:])
    expected = scipy.stats.tukey_hsd(*rows).confidence_interval()
    for other, one in enumerate(found, 1):
        assert one.needed == pytest.approx((expected.high - expected.low)[0, other] / 2, rel=0.03)


def test_unequal_spreads_and_numbers_of_seeds_weigh_their_quantiles() -> None:
    """The formula, by hand: v = 4/4 and 1/2 from variances of 4 and 1."""
    best, other = [8.0, 12.0, 8.0, 12.0], [5.0 - 0.5**0.5, 5.0 + 0.5**0.5]
    v1, v2 = (16 / 3) / 4, 1.0 / 2
    q1, q2 = (scipy.stats.studentized_range.ppf(0.95, 2, degrees) for degrees in (3, 1))
    (found,) = against_best(best, [other])
    assert found.difference == pytest.approx(5.0)
    assert found.needed == pytest.approx((q1 * v1 + q2 * v2) / (v1 + v2) * np.sqrt((v1 + v2) / 2), rel=1e-6)


@pytest.mark.parametrize("spreads", [[1.0] * 12, [10.0] + [1.0] * 11], ids=["equal", "one large"])
def test_no_row_of_a_null_table_is_called_worse(spreads: list[float]) -> None:
    """12 rows of 5 seeds without any difference: at most 5 % of tables; the benchmark has more rows and designs."""
    draw, wrong, tables = np.random.default_rng(7), 0, 600
    for _ in range(tables):
        rows = (draw.normal(size=(5, 12)) * spreads).T
        best = int(rows.mean(axis=1).argmax())
        others: list[Any] = [row for number, row in enumerate(rows) if number != best]
        wrong += any(one.worse for one in against_best(rows[best], others))
    assert wrong / tables <= 0.05


def test_a_real_difference_is_found() -> None:
    rows = samples(3, 12, 5, spread=0.005)
    rows[0] = [value + 0.85 for value in rows[0]]
    rows[1:] = [[value + 0.80 for value in row] for row in rows[1:]]
    assert all(one.worse for one in against_best(rows[0], rows[1:]))


def test_what_cannot_be_tested_says_why() -> None:
    assert against_best([0.9, 0.8], [[0.7]]) == [AgainstBest(pytest.approx(0.15), why_not="one seed")]
    (alone,) = against_best([0.9], [[0.7, 0.8]])
    assert alone.why_not == "the best has one seed"
    (same,) = against_best([0.9, 0.9], [[0.7, 0.7]])
    assert same.why_not == "the same value at every seed: no variance to test against"
    assert same.worse is None


def table(folder: Path, rows: dict[str, list[float]]) -> Any:
    runs = [
        record(value, key=f"{method}{seed}", seed=seed, method=method)
        for method, values in rows.items()
        for seed, value in enumerate(values)
    ]
    return build(Request((str(write(folder, runs)),)))


def test_a_table_says_what_its_test_rows_alone_make(scratch: Path) -> None:
    """400 rows make 0.02 at 0.8: a row of little spread 0.03 below the best is worse on these, perhaps on no others."""
    report = table(
        scratch / "t",
        {"lora": [0.830, 0.831, 0.829, 0.830], "head": [0.800, 0.801, 0.799, 0.800], "full": [0.6, 0.601, 0.6, 0.6]},
    )
    said = " ".join(legend(report))
    assert report.marks == {next(g.id for g in report.rows if g.label == "peft=lora"): "best"}
    low, high = ((p * (1 - p) / 400) ** 0.5 for p in (0.83, 0.60025))
    assert f"a standard error of {low:.4f} to {high:.4f} (binomial)" in said
    assert "might explain how far these are from the best: peft=head." in said


@pytest.mark.parametrize("sections", [1, 2])
def test_sections_share_the_level(scratch: Path, sections: int) -> None:
    """0.05 is 6.12 standard errors of the difference: more than Student's 4.30 for 5 %, less than 6.21 for 2.5 %."""
    values = {"lora": [0.80, 0.81, 0.82], "head": [0.75, 0.76, 0.77], "full": [0.1, 0.2, 0.3], "ia3": [0.1, 0.2, 0.3]}
    pairs = [("lora", "a"), ("head", "a"), ("full", "b"), ("ia3", "b")][: 2 * sections]
    folder = scratch / "t"
    write(folder, [record(v, key=f"{m}{s}", seed=s, method=m) for m, _ in pairs for s, v in enumerate(values[m])])
    cell = {"row": True, "curve": True, "failed": {}, "chosen": {}}
    cells = [cell | {"id": m, "label": m, "group": g, "runs": {str(s): f"{m}{s}" for s in range(3)}} for m, g in pairs]
    sweep_file(folder, cells=cells, baseline=None)
    report = build(Request((str(folder),)))
    labels = {group.id: group.label for group in report.rows}
    marks = {labels[name]: mark for name, mark in report.marks.items() if labels[name] in ("lora", "head")}
    assert marks == ({"lora": "best"} if sections == 1 else {"lora": "best", "head": "tied"})
