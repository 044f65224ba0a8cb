"""Measure how well a first stage reconstructs images.

M images, C H W image.
"""

from __future__ import annotations

import numpy as np

LEAST_ERROR = 1e-16  # smallest mean squared error that counts, as a fraction of peak^2


def psnr(images: np.ndarray, reconstructions: np.ndarray, *, peak: float) -> np.ndarray:
    """Return the peak signal-to-noise ratio of each image, 10 log10(peak^2 / mean squared error), in dB.

    Args:
        images, reconstructions: (M, C, H, W).
        peak: largest possible difference of two pixels: 255 for bytes, 2 for values in [-1, 1].

    Returns:
        (M,) float64, at most 160. An image without any error has 160 instead of infinity, which would make the mean of
        all images infinite.
    """
    errors = np.square(images.astype(np.float64) - reconstructions).mean(axis=(1, 2, 3))
    return 10.0 * np.log10(peak**2 / np.maximum(errors, LEAST_ERROR * peak**2))
