from __future__ import annotations

import numpy as np
import pytest

from raydis.metrics.reconstruction import psnr


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
