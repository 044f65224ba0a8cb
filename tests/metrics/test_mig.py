from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score

from raydis.errors import MetricError
from raydis.metrics.mig import discretise, mig, mutual_information


def identity_data(num_samples: int = 5000) -> np.ndarray:
    """Ten factors, uniform on 1..10: disentanglement_lib's dummy data, where the observation is the factor vector."""
    return np.random.default_rng(0).integers(1, 11, size=(num_samples, 10))


def score(codes: np.ndarray, factors: np.ndarray, num_samples: int = 3000) -> float | None:
    return mig(codes, factors, rng=np.random.default_rng(1), num_samples=num_samples).score


def test_each_factor_in_a_code_of_its_own_scores_nearly_one() -> None:
    factors = identity_data()
    assert score(factors.astype(float), factors) == pytest.approx(0.9922, abs=0.005)  # disentanglement_lib's value


def test_codes_given_twice_have_no_gap() -> None:
    factors = identity_data()
    assert score(np.hstack([factors, factors]).astype(float), factors) == 0.0


def test_noise_has_almost_no_gap() -> None:
    assert score(np.random.default_rng(2).normal(size=(5000, 10)), identity_data()) < 0.02


def test_a_code_of_half_a_factor_has_the_gap_known_from_its_entropy() -> None:
    factors = np.stack(np.divmod(np.arange(16), 4), axis=1).repeat(100, axis=0)  # two factors of four levels
    codes = np.stack([factors[:, 0] // 2, np.zeros(1600), factors[:, 1]], axis=1).astype(float)
    found = mig(codes, factors, rng=np.random.default_rng(0), num_samples=20_000)
    assert found.score == pytest.approx((0.5 + 1.0) / 2, abs=0.01)  # ln 2 of ln 4, and all of ln 4
    assert found.information is not None
    assert found.information[0, 0] == pytest.approx(np.log(2), abs=0.01)


def test_a_constant_factor_is_left_out_and_named() -> None:
    factors = identity_data()
    factors[:, 3] = 5
    found = mig(factors.astype(float), factors, rng=np.random.default_rng(1), num_samples=3000)
    assert found.constant_factors == (3,)
    assert found.score == pytest.approx(0.992, abs=0.004)


@pytest.mark.parametrize("codes", [np.zeros((50, 3)), np.full((50, 3), np.nan)])
def test_failed_codes_have_a_reason_and_no_number(codes: np.ndarray) -> None:
    factors = np.random.default_rng(0).integers(3, size=(50, 2))
    found = mig(codes, factors, rng=np.random.default_rng(0))
    assert (found.status, found.score) == ("invalid", None)
    assert found.reason


def test_one_unit_cannot_have_a_gap() -> None:
    with pytest.raises(MetricError, match="at least two units"):
        mig(np.arange(9.0)[:, None], np.stack(np.divmod(np.arange(9), 3), axis=1), rng=np.random.default_rng(0))


def test_bins_are_those_of_disentanglement_lib() -> None:
    assert discretise(np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]), 3).tolist() == [0, 0, 1, 1, 2, 2]


def test_a_code_that_varies_by_rounding_alone_is_constant() -> None:
    factors = np.stack(np.divmod(np.arange(16), 4), axis=1).repeat(100, axis=0)
    rounded = 1000.0 + 2e-13 * (factors[:, 0] - 1.5)
    assert len(np.unique(rounded)) > 1
    codes = np.stack([factors[:, 0], rounded, factors[:, 1]], axis=1).astype(float)
    found = mig(codes, factors, rng=np.random.default_rng(0), num_samples=3000)
    assert found.information is not None
    assert not found.information[1].any()
    assert found.score == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("code", [np.random.default_rng(0).normal(size=500), np.full(5, 3.0)])
def test_bins_are_those_of_numpys_histogram(code: np.ndarray) -> None:
    counts, _ = np.histogram(code, bins=20)
    assert sorted(np.bincount(discretise(code, 20), minlength=20)) == sorted(counts)


def test_information_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(3)
    a = rng.integers(5, size=400)
    b = (a + rng.integers(3, size=400)) % 7
    assert mutual_information(a, b, 5, 7) == pytest.approx(mutual_info_score(a, b))
