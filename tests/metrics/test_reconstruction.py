from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from raydis.errors import MetricError
from raydis.metrics.reconstruction import psnr, ssim


def test_known_values() -> None:
    """An error of a tenth of the peak everywhere is 20 dB, of a hundredth 40 dB."""
    images = np.zeros((3, 1, 4, 4), np.float32)
    errors = np.array([0.2, 0.02, 2.0], np.float32).reshape(3, 1, 1, 1)
    np.testing.assert_allclose(psnr(images, images + errors, peak=2.0), [20.0, 40.0, 0.0], atol=1e-5)


def test_bytes_do_not_wrap_around() -> None:
    images, others = np.zeros((1, 2, 2, 3), np.uint8), np.full((1, 2, 2, 3), 255, np.uint8)
    assert psnr(images, others, peak=255.0).item() == pytest.approx(0.0)


def test_an_image_without_error_is_as_good_as_numbers_get() -> None:
    images = np.random.default_rng(0).random((2, 1, 4, 4))
    assert psnr(images, images, peak=1.0).tolist() == [160.0, 160.0]


def test_the_error_of_one_pixel_is_spread_over_the_image() -> None:
    images = np.zeros((1, 1, 10, 10))
    other = images.copy()
    other[0, 0, 3, 3] = 1.0
    assert psnr(images, other, peak=1.0).item() == pytest.approx(20.0)


def test_ssim_is_that_of_its_windows() -> None:
    rng = np.random.default_rng(0)
    images = rng.random((2, 3, 13, 12))
    others = np.clip(images + 0.2 * rng.normal(size=images.shape), 0, 1)
    place = np.arange(11) - 5
    weights = np.exp(-(place[:, None] ** 2 + place**2) / 4.5)
    weights /= weights.sum()
    found = np.zeros((2, 3, 3, 2))
    for m, c, y, x in np.ndindex(found.shape):
        a, b = (each[m, c, y : y + 11, x : x + 11] for each in (images, others))
        mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
        var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
        covariance = (weights * (a - mean_a) * (b - mean_b)).sum()
        found[m, c, y, x] = (2 * mean_a * mean_b + 1e-4) * (2 * covariance + 9e-4)
        found[m, c, y, x] /= (mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4)
    assert ssim(images, others, peak=1.0) == pytest.approx(found.mean(axis=(1, 2, 3)), abs=1e-10)
    assert ssim(images, images, peak=1.0) == pytest.approx(1.0)
    assert ssim(images * 255, others * 255, peak=255) == pytest.approx(ssim(images, others, peak=1.0))


def test_ssim_of_images_smaller_than_a_window_is_refused() -> None:
    with pytest.raises(MetricError, match="at least 11 pixels high and wide"):
        ssim(np.zeros((1, 3, 8, 8)), np.zeros((1, 3, 8, 8)), peak=1.0)


@pytest.mark.parametrize("measure", [psnr, ssim])
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((2, 3, 12, 12), (1, 3, 12, 12)),
        ((2, 3, 12, 12), (2, 1, 12, 12)),
        ((1, 1, 12, 12), (3, 3, 12, 12)),
        ((2, 3, 12, 12), (3, 12, 12)),
        ((3, 12, 12), (3, 12, 12)),
        ((0, 3, 12, 12), (0, 3, 12, 12)),
    ],
)
def test_unequal_shapes_are_refused_instead_of_broadcast(
    measure: Callable[..., np.ndarray], one: tuple[int, ...], other: tuple[int, ...]
) -> None:
    with pytest.raises(MetricError, match=r"cannot be compared: give one reconstruction .* for each image"):
        measure(np.zeros(one), np.zeros(other), peak=1.0)
