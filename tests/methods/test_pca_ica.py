from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.decomposition import PCA
from torch import Tensor

from raydis.build import build_method
from raydis.config import RunConfig
from raydis.errors import FitError
from raydis.methods.pca_ica import PcaIca

SHAPE = (3, 8, 8)
NUM_PIXELS = 3 * 8 * 8


def sources(count: int, kind: str, num_units: int = 4) -> np.ndarray:
    """Independent numbers of mean 0 and variance 1, (count, num_units)."""
    rng = np.random.default_rng(0)
    drawn = {
        "uniform": rng.uniform(-1.0, 1.0, (count, num_units)),
        "laplace": rng.laplace(size=(count, num_units)),
        "levels": rng.integers(0, 4, (count, num_units)).astype(float),
    }[kind]
    return (drawn - drawn.mean(0)) / drawn.std(0)


def mixed(values: np.ndarray, noise: float = 0.0) -> Tensor:
    """Images of SHAPE that a random linear map makes of sources, within [-1, 1]."""
    rng = np.random.default_rng(1)
    pixels = values @ rng.normal(size=(values.shape[1], NUM_PIXELS)) + 0.5
    pixels += noise * rng.normal(size=pixels.shape)
    return torch.from_numpy(pixels / np.abs(pixels).max()).float().view(-1, *SHAPE)


def fitted(images: Tensor, num_units: int = 4, seed: int = 0, **options: float) -> PcaIca:
    method = PcaIca(image_shape=SHAPE, num_units=num_units, fit_images=len(images), **options)
    method.start(images.split(300), torch.Generator().manual_seed(seed))
    return method


@pytest.mark.parametrize("kind", ["uniform", "laplace", "levels"])
@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_independent_sources_of_a_linear_mixture_are_found_up_to_sign_and_order(kind: str, noise: float) -> None:
    values = sources(3000, kind)
    images = mixed(values, noise)
    units = fitted(images).units(images).numpy()
    correlations = np.abs(np.corrcoef(values.T, units.T)[:4, 4:])
    rows, columns = linear_sum_assignment(-correlations)
    assert correlations[rows, columns].min() > 0.99
    assert sorted(columns) == [0, 1, 2, 3]


def test_principal_components_alone_do_not_find_them() -> None:
    """Else the test above would not need the rotation."""
    values = sources(3000, "uniform")
    found = PCA(4).fit_transform(mixed(values).flatten(1).numpy())
    correlations = np.abs(np.corrcoef(values.T, found.T)[:4, 4:])
    assert correlations[linear_sum_assignment(-correlations)].min() < 0.95


def test_units_have_mean_0_and_variance_1_and_are_uncorrelated() -> None:
    images = mixed(sources(2000, "uniform", 6), noise=0.1)
    units = fitted(images).units(images)
    torch.testing.assert_close(units.mean(0), torch.zeros(4), rtol=0, atol=1e-4)
    torch.testing.assert_close(units.T.cov(), torch.eye(4), rtol=0, atol=1e-3)


def test_decoding_the_units_gives_the_reconstruction_of_scikit_learns_pca() -> None:
    """Of images that it was not fitted to as well."""
    images, others = (0.9 * mixed(sources(2500, "uniform"), noise=0.02)).split([2000, 500])
    pca = PCA(4, svd_solver="full").fit(images.flatten(1).numpy())
    method = fitted(images)
    for shown in (images, others):
        expected = pca.inverse_transform(pca.transform(shown.flatten(1).numpy())).reshape(-1, *SHAPE)
        assert np.abs(expected).max() <= 1.0  # nothing to clamp
        np.testing.assert_allclose(method.decode(method.encode(shown)).numpy(), expected, atol=2e-3)


def test_the_maps_are_each_others_inverse_on_units() -> None:
    method = fitted(mixed(sources(1000, "laplace")))
    torch.testing.assert_close(method.unmixing @ method.mixing, torch.eye(4), rtol=0, atol=1e-4)


def test_images_stay_within_their_range() -> None:
    method = fitted(mixed(sources(1000, "laplace")))
    drawn = method.decode(torch.full((1, 4, 1), 100.0))
    assert (float(drawn.min()), float(drawn.max())) == (-1.0, 1.0)


def test_equal_seeds_give_equal_maps() -> None:
    images = mixed(sources(1000, "uniform"))
    assert torch.equal(fitted(images).unmixing, fitted(images).unmixing)


def test_it_has_no_moves_and_no_loss() -> None:
    method = fitted(mixed(sources(500, "uniform")))
    assert list(method.moves) == list(method.averaged_modules) == []
    with pytest.raises(TypeError, match="PcaIca has no moves, and so no loss"):
        method(None, "fit")


def test_no_convergence_is_an_error_that_says_what_to_raise() -> None:
    with pytest.raises(FitError, match=r"ICA did not converge within 1 iterations: raise method\.max_iterations"):
        fitted(mixed(sources(1000, "uniform")), max_iterations=1, tolerance=1e-9)


@pytest.mark.parametrize("count", [1, 3])
def test_fewer_images_than_units_are_refused(count: int) -> None:
    with pytest.raises(FitError, match=rf"{count} images of 192 values cannot give num_units=4 components: lower"):
        fitted(mixed(sources(1000, "uniform"))[:count])


def test_fewer_values_than_units_are_refused() -> None:
    method = PcaIca(image_shape=(1, 2, 2), num_units=5, fit_images=100)
    with pytest.raises(FitError, match=r"100 images of 4 values cannot give num_units=5 components"):
        method.start([torch.rand(100, 1, 2, 2)], torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("images", "directions"), [(mixed(sources(1000, "uniform", 3)), 3), (torch.rand(4, *SHAPE), 3)]
)
def test_images_that_vary_in_fewer_directions_than_units_are_refused(images: Tensor, directions: int) -> None:
    """Whitening would blow rounding errors up to a unit: four images span three directions around their mean."""
    with pytest.raises(FitError, match=rf"images vary in {directions} directions, fewer than num_units=4: lower"):
        fitted(images)


@pytest.mark.parametrize(("fit_images", "num_images", "taken"), [(500, 1000, 500), (1000, 600, 600)])
def test_it_is_fitted_to_no_more_images_than_the_budget_has(fit_images: int, num_images: int, taken: int) -> None:
    tree = {"method": {"kind": "pca_ica", "fit_images": fit_images}, "train": {"num_images": num_images}}
    assert build_method(RunConfig.model_validate(tree), 3).start_images == taken
