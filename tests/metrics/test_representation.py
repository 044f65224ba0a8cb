from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA

from raydis.errors import MetricError
from raydis.metrics import representation
from raydis.metrics.representation import per_unit_pca


def random_units(num_samples: int = 400, num_units: int = 5, dim: int = 6) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.einsum("mnd,nde->mne", rng.normal(size=(num_samples, num_units, dim)), rng.normal(size=(5, 6, 6))) + 3.0


@pytest.mark.parametrize("block_elements", [1 << 21, 1000])
def test_each_unit_equals_scikit_learns_pca_up_to_sign(block_elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(representation, "_BLOCK_ELEMENTS", block_elements)
    codes = random_units()
    scalars = per_unit_pca(codes)
    for unit in range(codes.shape[1]):
        expected = PCA(n_components=1).fit_transform(codes[:, unit])[:, 0]
        sign = np.sign(expected @ scalars[:, unit])
        np.testing.assert_allclose(scalars[:, unit], sign * expected, atol=1e-10)


def test_the_largest_loading_is_positive() -> None:
    line = np.linspace(-1.0, 1.0, 11)
    codes = line[:, None, None] * np.array([[[-3.0, 4.0], [-4.0, 3.0]]]) / 5.0
    np.testing.assert_allclose(per_unit_pca(codes), np.stack([line, -line], axis=1), atol=1e-12)


def test_units_that_are_scalars_are_only_centred() -> None:
    codes = np.array([[1.0, 10.0], [2.0, 20.0], [6.0, 0.0]])
    expected = codes - [3.0, 10.0]
    np.testing.assert_allclose(per_unit_pca(codes), expected, atol=1e-12)
    np.testing.assert_allclose(per_unit_pca(-codes[:, :, None]), -expected, atol=1e-12)


@pytest.mark.parametrize("shape", [(1000, 3), (1000, 3, 1), (1000, 3, 4)])
def test_a_collapsed_unit_gives_exact_zeros(shape: tuple[int, ...]) -> None:
    codes = np.random.default_rng(0).normal(size=shape)
    codes[:, 1] = 0.1  # its float64 sum over 1000 rows is not 100
    scalars = per_unit_pca(codes)
    assert (scalars[:, 1] == 0.0).all()
    assert (scalars[:, [0, 2]].std(axis=0) > 0.5).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("shape", [(50, 3), (50, 3, 4)])
def test_a_unit_that_is_not_finite_gives_nan_and_leaves_the_others_alone(shape: tuple[int, ...], bad: float) -> None:
    codes = np.random.default_rng(0).normal(size=shape)
    clean = per_unit_pca(codes)
    codes[7, 1] = bad
    scalars = per_unit_pca(codes)
    assert np.isnan(scalars[:, 1]).all()
    np.testing.assert_array_equal(scalars[:, [0, 2]], clean[:, [0, 2]])


def test_a_large_offset_costs_no_precision() -> None:
    codes = random_units()
    np.testing.assert_allclose(per_unit_pca(codes + 2.0**30), per_unit_pca(codes), atol=1e-5)


def test_a_straight_curve_of_tokens_ranks_like_its_scalar() -> None:
    scalar = np.random.default_rng(0).normal(size=200)
    codes = (scalar[:, None, None] ** 3) * np.array([[[0.2, -1.0, 0.7]]]) + 5.0
    ranks = per_unit_pca(codes)[:, 0].argsort().argsort()
    assert ranks.tolist() in (scalar.argsort().argsort().tolist(), (-scalar).argsort().argsort().tolist())


@pytest.mark.parametrize("codes", [np.zeros(3), np.zeros((0, 3)), np.zeros((2, 3), complex), np.array([["a"]])])
def test_codes_that_are_no_table_of_units_are_refused(codes: np.ndarray) -> None:
    with pytest.raises(MetricError, match="codes must be real numbers"):
        per_unit_pca(codes)
