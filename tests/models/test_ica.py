from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.decomposition import FastICA

from raydis.errors import FitError
from raydis.metrics.mcc import mcc
from raydis.models.ica import find_rotation, independent_components, shape_of, whiten
from raydis.models.ica_head import IcaHead
from tests.double import double_precision

Floats = NDArray[np.float64]


def sources(count: int = 2000) -> Floats:
    """Three independent numbers of different distributions: uniform, Laplace, exponential."""
    rng = np.random.default_rng(0)
    return np.column_stack([rng.uniform(-1, 1, count), rng.laplace(size=count), rng.exponential(size=count)])


def mixed(values: Floats) -> Floats:
    return values @ np.random.default_rng(1).normal(size=(values.shape[1],) * 2).T + [5.0, -3.0, 0.1][: values.shape[1]]


def whitened(values: Floats) -> Floats:
    white = whiten(values)
    return (values - white.mean) @ white.forward.T


def test_whitening_gives_mean_0_and_covariance_1_and_can_be_undone() -> None:
    values = mixed(sources())
    white = whiten(values)
    done = (values - white.mean) @ white.forward.T
    np.testing.assert_allclose(done.mean(0), 0, atol=1e-10)
    np.testing.assert_allclose(np.cov(done.T, ddof=0), np.eye(3), atol=1e-10)
    np.testing.assert_allclose(done @ white.backward.T + white.mean, values, atol=1e-10)


@pytest.mark.parametrize("seed", [0, 1])
def test_independent_sources_are_found(seed: int) -> None:
    white = whitened(mixed(sources()))
    rotation = find_rotation(white, seed=seed)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-10)
    score = mcc(white @ rotation.T, sources()).score
    assert score is not None
    assert score > 0.99


def test_the_components_are_those_of_fastica() -> None:
    """Up to what the two objectives weigh differently in a sample."""
    white = whitened(mixed(sources()))
    theirs = FastICA(whiten=False, tol=1e-8, random_state=0).fit(white).components_  # pyright: ignore[reportArgumentType]
    cosines = np.abs(find_rotation(white, seed=0) @ theirs.T)
    assert cosines.max(axis=1).min() > 0.999


def test_order_and_signs_are_canonical_whatever_the_seed_and_the_axes() -> None:
    white = whitened(mixed(sources()))
    first = white @ find_rotation(white, seed=0).T
    negentropy = shape_of(first).negentropy
    assert (np.diff(negentropy) <= 0).all()
    assert ((first**3).mean(0) > 0).all()
    np.testing.assert_allclose(white @ find_rotation(white, seed=7).T, first, atol=1e-4)
    turned = white @ np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))[0]
    np.testing.assert_allclose(turned @ find_rotation(turned, seed=0).T, first, atol=1e-4)


def test_the_shape_of_known_distributions() -> None:
    rng = np.random.default_rng(0)
    units = np.column_stack([rng.uniform(size=100_000), rng.normal(size=100_000), rng.laplace(size=100_000)])
    found = shape_of(3.0 * units + 1.0)
    np.testing.assert_allclose(found.kurtosis, [-1.2, 0.0, 3.0], atol=0.25)
    assert found.negentropy[0] == pytest.approx(7.2e-4, rel=0.05)
    assert found.gaussian.tolist() == [False, True, False]


def test_gaussian_components_are_called_gaussian_although_ica_chose_the_least_gaussian_axes() -> None:
    white = whitened(np.random.default_rng(0).normal(size=(3000, 3)))
    assert shape_of(white @ find_rotation(white, seed=0).T).gaussian.all()
    assert not shape_of(np.random.default_rng(0).uniform(size=(1000, 3))).gaussian.any()


def test_no_convergence_is_an_error_that_says_what_to_raise() -> None:
    with pytest.raises(FitError, match=r"ICA did not converge within 1 iterations: raise method\.max_iterations"):
        find_rotation(whitened(mixed(sources())), seed=0, max_iterations=1, tolerance=1e-12)


def test_a_head_maps_units_to_components_and_back() -> None:
    with double_precision():
        head, units = IcaHead(3), torch.from_numpy(mixed(sources()))
        assert torch.equal(head(units), units)
        assert head.not_ready() == "independent components have not been fitted to the units yet: let training " + (
            "reach a checkpoint"
        )
        head.fit(units)
        assert head.not_ready() is None
        components = head(units)
        torch.testing.assert_close(components.mean(0), torch.zeros(3), rtol=0, atol=1e-10)
        torch.testing.assert_close(components.T.cov(correction=0), torch.eye(3), rtol=0, atol=1e-10)
        torch.testing.assert_close(head.inverse(components), units, rtol=0, atol=1e-10)


@pytest.mark.parametrize("broken", ["constant", "copied", "nan"])
def test_a_head_that_cannot_be_fitted_is_the_identity_and_says_so(
    broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    units = torch.from_numpy(mixed(sources())).float()
    head = IcaHead(3)
    head.fit(units)
    units[:, 1] = {"constant": torch.zeros(()), "copied": units[:, 0], "nan": torch.tensor(torch.nan)}[broken]
    with caplog.at_level(logging.WARNING):
        head.fit(units)
    assert "the units are not rotated to independent components" in caplog.text
    reason = head.not_ready()
    assert reason is not None
    assert reason.startswith("the units have no independent components")
    again = IcaHead(3)
    again.load_state_dict(head.state_dict())
    assert again.not_ready() == reason
    assert torch.equal(head(units[:, :1].expand(-1, 3)), units[:, :1].expand(-1, 3))


def test_components_of_units_that_are_copies_constant_or_of_any_scale_are_the_sources() -> None:
    """Four units that mix three sources and one copy, of scales that differ by 1e12, and a constant one."""
    truth = sources(12_000)  # more than are fitted
    units = np.column_stack([mixed(truth) * [1e6, 1.0, 1e-6], mixed(truth)[:, 0], np.full(len(truth), 3.0)])
    found = independent_components(units, seed=0)
    assert found.shape == (12_000, 3)
    score = mcc(found, truth).score
    assert score is not None
    assert score > 0.99
    same = independent_components(mixed(truth), seed=0)
    np.testing.assert_allclose(found, same, atol=1e-3)
