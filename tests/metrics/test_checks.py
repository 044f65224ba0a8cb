from __future__ import annotations

from dataclasses import astuple
from functools import partial

import numpy as np
import pytest

from raydis.errors import MetricError
from raydis.metrics.checks import check_table, constant_factors, invalid_reason, varying_factors
from raydis.metrics.dci_es import dci_es
from raydis.metrics.grouped import leakage

FACTORS = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
CODES = np.arange(8.0).reshape(4, 2)


def test_a_sound_table_becomes_float64_codes_and_int64_factors() -> None:
    codes, factors = check_table(CODES.astype(np.float32), FACTORS.astype(np.uint8))
    assert codes.dtype == np.float64
    assert factors.dtype == np.int64
    np.testing.assert_array_equal(codes, CODES)


def test_boolean_attributes_are_factors_of_two_levels() -> None:
    _, factors = check_table(CODES, FACTORS.astype(bool))
    np.testing.assert_array_equal(factors, FACTORS)


@pytest.mark.parametrize(
    ("codes", "factors", "message"),
    [
        (CODES[:3], FACTORS, "3 rows of codes but 4 of factors"),
        (CODES, FACTORS.astype(float), "factors of type float64 are not levels"),
        (CODES.astype(str), FACTORS, "codes of type <U.* are not real numbers: give an array of floats"),
        (CODES[:, :, None], FACTORS, r"codes of shape \(4, 2, 1\).*per_unit_pca first"),
        (CODES[:0], FACTORS[:0], r"codes of shape \(0, 2\)"),
        (
            CODES[:1],
            FACTORS[:1],
            "one row of codes and factors cannot be scored: give the rows of at least two samples",
        ),
        (CODES, FACTORS[:, 0], r"factors of shape \(4,\)"),
        (CODES, np.zeros((4, 2), int), "0 of 2 factors vary in these 4 rows"),
        (CODES, FACTORS * [1, 0], "1 of 2 factors vary in these 4 rows, but at least two must"),
    ],
)
def test_a_table_that_can_never_be_scored_is_refused(codes: np.ndarray, factors: np.ndarray, message: str) -> None:
    with pytest.raises(MetricError, match=message):
        check_table(codes, factors)


def test_levels_may_be_any_integers() -> None:
    """The levels of a user may be identifiers, which count nothing."""
    codes = np.random.default_rng(0).normal(size=(60, 3))
    factors = np.indices((4, 3, 5)).reshape(3, -1).T
    small = {"num_train": 50, "num_test": 20}
    for metric in (dci_es, partial(leakage, estimator="tree")):
        found, same = (
            metric(codes, each, rng=np.random.default_rng(0), **small) for each in (factors * 10**15, factors)
        )
        assert found.status == "valid"
        np.testing.assert_equal(astuple(found), astuple(same))


def test_constant_and_varying_factors_are_told_apart() -> None:
    factors = np.array([[5, 0, 1], [5, 0, 2], [5, 1, 1]])
    assert varying_factors(factors).tolist() == [1, 2]
    assert constant_factors(factors) == (0,)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
def test_codes_that_no_tree_can_read_are_named(bad: float) -> None:
    codes = CODES.copy()
    codes[2, 1] = bad
    assert invalid_reason(codes) == "units [1] of 2 hold NaN, infinity or values beyond float32"


def test_codes_are_invalid_when_all_are_constant_but_not_when_one_lives() -> None:
    codes = np.full((4, 2), 0.1)
    assert invalid_reason(codes) == "all 2 units are constant: the representation has collapsed"
    codes[0, 1] = 0.2
    assert invalid_reason(codes) is None
