"""The statistics against scipy and against slow plain definitions."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from peftlab.report.statistics import (
    RESAMPLES,
    binomial_error,
    bootstrap_interval,
    compare,
    quantile,
    summarise,
)


def pairs(seed: int, n: int) -> tuple[dict[int, float], dict[int, float]]:
    generator = np.random.default_rng(seed)
    first = generator.normal(0.8, 0.02, n)
    second = first + generator.normal(0.01, 0.015, n)
    return dict(enumerate(first.tolist())), dict(enumerate(second.tolist()))


@pytest.mark.parametrize("n", [2, 3, 5, 10, 40])
@pytest.mark.parametrize("seed", range(5))
def test_the_paired_t_test_is_scipys(seed: int, n: int) -> None:
    first, second = pairs(seed, n)
    found = compare(first, second)
    expected = scipy.stats.ttest_rel(list(first.values()), list(second.values()))
    low, high = expected.confidence_interval(0.95)
    assert found.n == n
    assert found.t == pytest.approx(expected.statistic, rel=1e-10)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-10)
    assert found.interval == pytest.approx((low, high), rel=1e-9)


def test_only_shared_seeds_are_paired_and_by_seed() -> None:
    found = compare({3: 0.9, 1: 0.7, 0: 0.1}, {1: 0.6, 3: 0.6, 7: 5.0})
    expected = scipy.stats.ttest_rel([0.7, 0.9], [0.6, 0.6])
    assert (found.n, found.p) == (2, pytest.approx(expected.pvalue))
    assert found.difference == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("first", "second", "why"),
    [
        ({0: 0.8}, {0: 0.7}, "one shared seed"),
        ({0: 0.8}, {1: 0.7}, "no shared seed"),
        ({0: 0.8, 1: 0.9}, {0: 0.8, 1: 0.9}, "no difference at any seed"),
        ({0: 0.8, 1: 0.9, 2: 0.7}, {0: 0.7, 1: 0.8, 2: 0.6}, "the same difference at every seed"),
        ({0: 0.8, 1: float("nan")}, {0: 0.7, 1: 0.8}, "not finite"),
        (None, {0: 0.7}, "several runs of one seed"),
    ],
)
def test_no_p_without_a_test_and_the_reason_is_said(
    first: dict[int, float] | None, second: dict[int, float], why: str
) -> None:
    found = compare(first, second)
    assert found.p is None
    assert found.significant is None
    assert why in found.why_not


@pytest.mark.parametrize("family", [1, 3, 40])
def test_p_and_intervals_have_one_correction(family: int) -> None:
    """An interval at the corrected level holds zero exactly where the corrected p is not below the level."""
    for seed in range(30):
        first, second = pairs(seed, 4)
        found = compare(first, second, family=family)
        expected = scipy.stats.ttest_rel(list(first.values()), list(second.values()))
        assert found.interval == pytest.approx(tuple(expected.confidence_interval(1 - 0.05 / family)), rel=1e-8)
        assert found.p_adjusted == pytest.approx(min(1.0, family * expected.pvalue))
        assert found.interval is not None
        assert found.significant == (not found.interval[0] <= 0 <= found.interval[1])


@pytest.mark.parametrize("n", [5, 12, 40])
def test_the_bootstrap_interval_is_scipys_in_distribution(n: int) -> None:
    values = np.random.default_rng(n).normal(0.01, 0.02, n)
    low, high = bootstrap_interval(values)
    expected = scipy.stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=200_000, batch=5_000, rng=np.random.default_rng(1)
    ).confidence_interval
    # The standard error of a 2.5 % quantile over 10,000 resamples is about 2.7 % of the mean's standard error.
    tolerance = 6 * 0.027 * values.std() / np.sqrt(n)
    assert abs(low - expected.low) < tolerance
    assert abs(high - expected.high) < tolerance
    assert (low, high) == bootstrap_interval(values)
    assert RESAMPLES == 10_000


@pytest.mark.parametrize("n", [2, 3, 7, 10_000])
@pytest.mark.parametrize("share", [0.0, 0.025, 0.4, 0.975, 1.0])
def test_the_quantile_is_numpys(n: int, share: float) -> None:
    values = np.random.default_rng(n).normal(size=n)
    assert quantile(values, share) == pytest.approx(np.quantile(values, share), rel=1e-12)


def test_summary() -> None:
    assert summarise([]).mean is None
    assert summarise([0.5]).std is None
    found = summarise([1.0, 2.0, 4.0])
    assert (found.n, found.mean) == (3, pytest.approx(7 / 3))
    assert found.std == pytest.approx(scipy.stats.tstd([1.0, 2.0, 4.0]))
    assert not summarise([1.0, float("inf")]).finite


def test_binomial_error_is_that_of_the_distribution() -> None:
    assert binomial_error(0.8, 400) == pytest.approx(scipy.stats.binom(400, 0.8).std() / 400)
