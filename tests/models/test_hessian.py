from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.manifold import LocallyLinearEmbedding
from sklearn.neighbors import NearestNeighbors

from raydis.errors import FitError
from raydis.metrics.mcc import mcc
from raydis.models.hessian import embed, hessian_form, least_neighbors, prune, smallest_eigenvectors, without_constant
from raydis.models.ica import find_rotation

Floats = NDArray[np.float64]


def arcs(factors: Floats, angle: float = 1.5 * np.pi) -> Floats:
    """Points on arcs of length 1, one for each factor in [0, 1], turned in R^(2d): curved, and exactly isometric."""
    turned = np.linalg.qr(np.random.default_rng(9).normal(size=(2 * factors.shape[1],) * 2))[0]
    pairs = np.stack([np.cos(angle * factors), np.sin(angle * factors)], axis=2) / angle
    return pairs.reshape(len(factors), -1) @ turned.T


def uniform(count: int, num_factors: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).random((count, num_factors))


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def neighbors_of(points: Floats, count: int) -> NDArray[np.int64]:
    return NearestNeighbors(n_neighbors=count).fit(points).kneighbors(return_distance=False)


def explained(factors: Floats, coordinates: Floats) -> float:
    """R^2 of the factors as linear functions of coordinates."""
    inputs = np.column_stack([np.ones(len(coordinates)), coordinates])
    residual = factors - inputs @ np.linalg.lstsq(inputs, factors, rcond=None)[0]
    return float(1.0 - (residual**2).sum() / ((factors - factors.mean(0)) ** 2).sum())


@pytest.mark.parametrize(("num_factors", "count", "num_neighbors"), [(2, 1000, 20), (3, 2000, 26)])
def test_factors_of_isometric_curves_are_found(num_factors: int, count: int, num_neighbors: int) -> None:
    factors = uniform(count, num_factors)
    found = embed(arcs(factors), num_factors, num_neighbors, rng())
    assert len(found.kept) == count
    assert found.num_components == 1
    assert explained(factors, found.coordinates) >= 0.999
    units = found.coordinates @ find_rotation(found.coordinates, seed=0).T
    score = mcc(units, factors).score
    assert score is not None
    assert score >= 0.99
    np.testing.assert_allclose(found.coordinates.mean(0), 0, atol=1e-10)
    np.testing.assert_allclose(np.cov(found.coordinates.T, ddof=0), np.eye(num_factors), atol=1e-8)


def test_the_form_is_symmetric_positive_semidefinite_and_blind_to_constants() -> None:
    points = arcs(uniform(400, 2))
    form = hessian_form(points, neighbors_of(points, 20), 2)
    dense = form.toarray()
    np.testing.assert_allclose(dense, dense.T, rtol=0, atol=1e-14 * np.abs(dense).max())
    assert np.linalg.eigvalsh(dense)[0] >= -1e-10
    assert np.abs(form @ np.ones(400)).max() <= 1e-8 * np.linalg.norm(dense)


def test_the_form_does_not_see_linear_functions_of_flat_data() -> None:
    """On a plane in R^5 its estimators are exact, so only rounding remains."""
    factors = uniform(400, 2)
    points = factors @ np.linalg.qr(rng().normal(size=(5, 2)))[0].T
    form = hessian_form(points, neighbors_of(points, 20), 2)

    def seen(values: Floats) -> float:
        return float(np.linalg.norm(form @ values) / (np.linalg.norm(form.toarray()) * np.linalg.norm(values)))

    assert seen(factors @ [1.0, -2.0]) < 1e-12
    assert seen(factors[:, 0] ** 2) > 1e-4
    assert seen(rng().normal(size=400)) > 1e-3


def null_spaces(num_neighbors: int) -> tuple[Floats, Floats]:
    """Orthonormal bases (M, 2) of ours and of scikit-learn's, for points of which none is left out."""
    points = arcs(uniform(500, 2))
    points = points[prune(points, 2, num_neighbors)[0]]
    theirs = LocallyLinearEmbedding(n_neighbors=num_neighbors, n_components=2, method="hessian", eigen_solver="dense")
    return (
        embed(points, 2, num_neighbors, rng()).coordinates / np.sqrt(len(points)),
        np.linalg.qr(theirs.fit_transform(points))[0],
    )


def test_with_the_fewest_neighbors_the_null_space_is_that_of_scikit_learn() -> None:
    """There all functions on a patch are quadratic, so that both penalise the same ones."""
    ours, theirs = null_spaces(6)
    np.testing.assert_allclose(ours @ ours.T, theirs @ theirs.T, atol=1e-8)


def test_with_more_neighbors_scikit_learn_penalises_other_functions_as_well() -> None:
    """Its QR decomposition is complete, so its null space is that of local tangent space alignment, which is close."""
    ours, theirs = null_spaces(20)
    cosines = np.linalg.svd(ours.T @ theirs)[1]
    assert 0.999 < cosines.min() < 1.0 - 1e-6


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    points = arcs(uniform(300, 2))
    whole = hessian_form(points, neighbors_of(points, 20), 2)
    monkeypatch.setattr("raydis.models.hessian.TRIPLETS_AT_ONCE", 7 * 20**2)
    parts = hessian_form(points, neighbors_of(points, 20), 2)
    np.testing.assert_allclose(parts.toarray(), whole.toarray(), atol=1e-13)


def test_a_rigid_motion_of_the_points_and_another_order_give_the_same_units() -> None:
    factors = uniform(800, 2)
    points = arcs(factors)

    def units_of(points: Floats) -> Floats:
        coordinates = embed(points, 2, 20, rng()).coordinates
        return coordinates @ find_rotation(coordinates, seed=0).T

    expected = units_of(points)
    turned = points @ np.linalg.qr(rng().normal(size=(4, 4)))[0] + 3.0
    np.testing.assert_allclose(units_of(turned), expected, atol=1e-4)
    order = rng().permutation(800)
    np.testing.assert_allclose(units_of(points[order]), expected[order], atol=1e-4)


def test_the_spectrum_has_a_gap_after_as_many_coordinates_as_there_are_factors() -> None:
    factors = uniform(1500, 2)
    assert embed(arcs(factors), 2, 20, rng()).gap > 10
    noise = rng().normal(size=(1500, 8))
    assert embed(noise, 2, 20, rng()).gap < 2
    circle = np.column_stack([np.cos(2 * np.pi * factors[:, 0]), np.sin(2 * np.pi * factors[:, 0]), factors[:, 1]])
    assert embed(circle, 2, 20, rng()).gap < 2  # a cylinder cannot be unrolled without a cut


@pytest.mark.parametrize(("num_dims", "least"), [(2, 6), (3, 10), (4, 15), (6, 28)])
def test_too_few_neighbors_are_refused_with_how_many_it_takes(num_dims: int, least: int) -> None:
    assert least_neighbors(num_dims) == least
    with pytest.raises(FitError, match=rf"{least - 1} neighbours .* {num_dims} dimensions: take at least {least}"):
        embed(uniform(200, num_dims), num_dims, least - 1, rng())


def test_a_point_that_is_nobodys_neighbor_is_left_out() -> None:
    """Its indicator would be a null vector: nothing restricts its value."""
    factors = uniform(600, 2)
    points = np.vstack([arcs(factors), np.full((1, 4), 0.9)])
    kept, neighbors, _ = prune(points, 2, 20)
    assert kept.tolist() == list(range(600))
    assert neighbors.max() < 600
    found = embed(points, 2, 20, rng())
    assert explained(factors, found.coordinates) >= 0.999
    unpruned = hessian_form(points, neighbors_of(points, 20), 2)
    values, vectors = smallest_eigenvectors(unpruned, 3, rng())
    assert np.abs(values[:2]).max() < 1e-12
    assert explained(factors, without_constant(vectors)[:600]) < 0.9  # so pruning is what the test above needs


def test_a_small_component_is_left_out_and_counted() -> None:
    points = np.vstack([arcs(uniform(900, 2)), arcs(uniform(60, 2, seed=1)) + 5.0])
    kept, _, num_components = prune(points, 2, 20)
    assert kept.tolist() == list(range(900))
    assert num_components == 2


def test_data_in_several_large_pieces_are_refused() -> None:
    pieces = [arcs(uniform(200, 2, seed)) + 5.0 * seed for seed in range(3)]
    with pytest.raises(
        FitError, match=r"graph of 600 images has 3 components and leaves 200 images in one piece: raise"
    ):
        embed(np.vstack(pieces), 2, 20, rng())


def test_fewer_points_than_neighbors_are_refused() -> None:
    with pytest.raises(FitError, match=r"15 different images are too few for 20 neighbours of each: give more images"):
        embed(uniform(15, 2), 2, 20, rng())


@pytest.mark.parametrize(("num_dims", "num_neighbors"), [(2, 20), (3, 26)])
@pytest.mark.parametrize("more", [1, 2, 5])
def test_barely_more_points_than_neighbors_are_enough_for_flat_data(
    num_dims: int, num_neighbors: int, more: int
) -> None:
    factors = uniform(num_neighbors + more, num_dims, seed=more)
    found = embed(factors, num_dims, num_neighbors, rng())
    assert num_neighbors < len(found.kept) <= num_neighbors + more
    assert explained(factors[found.kept], found.coordinates) == pytest.approx(1.0, abs=1e-6)


def test_few_points_of_which_too_many_are_nobodys_neighbor_are_refused() -> None:
    with pytest.raises(FitError, match=r"of 18 images has 1 components and leaves \d+ images in one piece: raise"):
        embed(uniform(18, 2), 2, 6, rng())


def test_the_seed_of_the_eigenvalue_solver_does_not_matter() -> None:
    points = arcs(uniform(500, 2))
    first, other = (embed(points, 2, 20, np.random.default_rng(seed)).coordinates for seed in (0, 1))
    np.testing.assert_allclose(first @ first.T / 500, other @ other.T / 500, atol=1e-8)
