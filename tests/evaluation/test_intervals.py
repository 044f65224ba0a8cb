"""Intervals hold what they promise, and complete grids are recognised."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from raydis.evaluation.intervals import around_first, around_mean, is_complete_grid
from tests.benchmarks.intervals import coverage

DRAWS = [0.5, 0.6, 0.4, 0.7]


@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_the_interval_of_draws_is_students_and_the_score_gives_no_part_of_it(confidence: float) -> None:
    spread, half = around_first([9.0, *DRAWS], confidence=confidence)
    assert spread == pytest.approx(np.std(DRAWS, ddof=1), rel=1e-12)
    assert half == pytest.approx(scipy.stats.t(3).ppf((1 + confidence) / 2) * spread, rel=1e-9)


def test_the_interval_of_a_mean_is_that_of_a_t_test() -> None:
    spread, half = around_mean(DRAWS, confidence=0.9)
    low, high = scipy.stats.ttest_1samp(DRAWS, 0.0).confidence_interval(0.9)
    assert spread == pytest.approx(np.std(DRAWS, ddof=1), rel=1e-12)
    assert (np.mean(DRAWS) - half, np.mean(DRAWS) + half) == pytest.approx((low, high), rel=1e-9)


@pytest.mark.parametrize("kind", ["first", "mean"])
def test_intervals_contain_the_truth_as_often_as_they_say(kind: str) -> None:
    rng, num, confidence = np.random.default_rng(0), 4000, 0.8
    hits = 0
    for draws in rng.normal(3.0, 2.0, size=(num, 4)):
        if kind == "first":
            centre, half = draws[0], around_first(draws, confidence=confidence)[1]
        else:
            centre, half = draws.mean(), around_mean(draws, confidence=confidence)[1]
        hits += abs(centre - 3.0) <= half
    assert hits / num == pytest.approx(confidence, abs=4 * (confidence * (1 - confidence) / num) ** 0.5)


@pytest.mark.parametrize(
    ("rows", "complete"),
    [
        ([[0, 0], [0, 1], [1, 0], [1, 1]], True),
        ([[5, 2], [-1, 2], [5, 7], [-1, 7], [5, 9], [-1, 9]], True),  # in any order, of any levels
        ([[0, 0], [0, 1], [1, 0], [1, 1]] * 3, True),
        ([[0, 0], [0, 1], [1, 0]], False),
        ([[0, 0], [0, 1], [1, 0], [1, 0]], False),
        ([[0, 0], [0, 1], [1, 0], [1, 1], [1, 1], [0, 0], [0, 0], [0, 1]], False),
        ([[0, 3], [1, 3]], True),
    ],
)
def test_a_complete_grid_has_each_combination_equally_often(rows: list[list[int]], complete: bool) -> None:
    assert is_complete_grid(np.array(rows)) == complete


@pytest.mark.parametrize("num_seeds", [3, 5, 10])
def test_the_benchmark_finds_the_coverage_that_is_known_for_a_bell(num_seeds: int) -> None:
    """Of means that are 1.96 estimated errors away, as many are within as Student's distribution has there."""
    num = 1000
    shares = {"Student's t": 0.95, "1.96 errors": 2 * scipy.stats.t(num_seeds - 1).cdf(1.959964) - 1}
    for method, share in shares.items():
        found = coverage(method, "bell", num_seeds, num)
        assert found == pytest.approx(share, abs=5 * (share * (1 - share) / num) ** 0.5)
