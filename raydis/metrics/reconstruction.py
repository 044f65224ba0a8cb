"""How well images survive a first stage.

M images, C H W image.
"""

from __future__ import annotations

import numpy as np

LEAST_ERROR = 1e-16  # of the peak's square


def psnr(images: np.ndarray, reconstructions: np.ndarray, *, peak: float) -> np.ndarray:
    """Peak signal-to-noise ratio of each image, 10 log10(peak^2 / mean squared error), in dB: (M,) float64.

    Args:
        images, reconstructions: (M, C, H, W).
        peak: largest difference that two pixels can have: 255 for bytes, 2 for values in [-1, 1].

    Returns:
        at most 160, for an image without any error as well: one such image shall not be the mean of all.
    """
    errors = np.square(images.astype(np.float64) - reconstructions).mean(axis=(1, 2, 3))
    return 10.0 * np.log10(peak**2 / np.maximum(errors, LEAST_ERROR * peak**2))
