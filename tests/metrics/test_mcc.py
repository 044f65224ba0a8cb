from __future__ import annotations

import numpy as np
import pytest

from raydis.errors import MetricError
from raydis.metrics.mcc import mcc

FACTORS = np.random.default_rng(0).random((500, 3))


@pytest.mark.parametrize(
    "codes",
    [FACTORS, FACTORS[:, [2, 0, 1]], -FACTORS, FACTORS * [3.0, -0.1, 1e6] + [1.0, 0.0, -7.0]],
    ids=["equal", "permuted", "negated", "affine"],
)
@pytest.mark.parametrize("correlation", ["pearson", "spearman"])
def test_codes_that_are_factors_up_to_order_sign_and_scale_score_1(codes: np.ndarray, correlation: str) -> None:
    assert mcc(codes, FACTORS, correlation=correlation).score == pytest.approx(1.0, abs=1e-12)


def test_each_factor_has_a_unit_of_its_own_so_that_the_sum_is_largest() -> None:
    """The best unit of both factors is the first, but only one of them can have it."""
    a, b = FACTORS[:, 0], FACTORS[:, 1]
    found = mcc(np.column_stack([a + b, a]), np.column_stack([a, b]))
    assert found.units == (1, 0)
    expected = (1.0 + abs(np.corrcoef(a + b, b)[0, 1])) / 2
    assert found.score == pytest.approx(expected, abs=1e-12)


def test_correlations_are_those_of_numpy() -> None:
    codes = np.random.default_rng(1).normal(size=(500, 4)) + FACTORS[:, [0, 0, 1, 2]]
    expected = np.abs(np.corrcoef(codes.T, FACTORS.T)[:4, 4:])
    np.testing.assert_allclose(mcc(codes, FACTORS).correlations, expected, atol=1e-12)


def test_a_monotone_function_loses_by_pearson_and_nothing_by_spearman() -> None:
    codes = np.exp(5.0 * FACTORS)
    pearson = mcc(codes, FACTORS).score
    assert pearson is not None
    assert pearson < 0.9
    assert mcc(codes, FACTORS, correlation="spearman").score == pytest.approx(1.0, abs=1e-12)


def test_a_factor_without_a_unit_counts_as_0_and_more_units_have_no_effect() -> None:
    found = mcc(FACTORS[:, :2], FACTORS)
    assert found.units == (0, 1, -1)
    assert found.score == pytest.approx(2 / 3, abs=1e-12)
    more = np.column_stack([np.zeros(500), FACTORS, FACTORS[:, 0] + FACTORS[:, 1]])
    assert mcc(more, FACTORS).score == pytest.approx(1.0, abs=1e-12)


def test_a_unit_that_rises_and_falls_with_its_factor_scores_0() -> None:
    levels = np.arange(-10, 11)
    factors = np.stack(np.meshgrid(levels, levels), -1).reshape(-1, 2)
    score = mcc(np.column_stack([factors[:, 0] ** 2, factors[:, 1]]), factors).score
    assert score == pytest.approx(0.5, abs=1e-12)


def test_a_constant_factor_is_left_out() -> None:
    found = mcc(FACTORS, np.column_stack([FACTORS, np.full(500, 0.1)]))
    assert found.score == pytest.approx(1.0, abs=1e-12)
    assert found.units == (0, 1, 2, -1)


@pytest.mark.parametrize("scale", [1e-200, 1e-12, 1e38])
def test_the_scale_of_units_does_not_matter(scale: float) -> None:
    assert mcc(FACTORS * scale, FACTORS).score == pytest.approx(1.0, abs=1e-12)


def test_integers_that_are_equal_as_floats_do_not_vary() -> None:
    large = 2**60 + np.arange(500)[:, None] % 2
    with pytest.raises(MetricError, match="0 of 1 factors vary"):
        mcc(FACTORS, large)


def test_factors_that_cannot_be_scored_are_refused() -> None:
    with pytest.raises(MetricError, match="0 of 3 factors vary in these 500 rows: score more of the data"):
        mcc(FACTORS, np.ones_like(FACTORS))
    with pytest.raises(MetricError, match="factors hold NaN or infinity: leave the rows out"):
        mcc(FACTORS, np.where(FACTORS > 0.99, np.nan, FACTORS))
    with pytest.raises(MetricError, match="factors of type <U1 are not real numbers"):
        mcc(FACTORS, np.full((500, 2), "a"))
