"""How well images survive a first stage.

M images, C H W image.
"""

from __future__ import annotations

import numpy as np


def psnr(images: np.ndarray, reconstructions: np.ndarray, *, peak: float) -> np.ndarray:
    """Peak signal-to-noise ratio of each image, 10 log10(peak^2 / mean squared error), in dB: (M,) float64.

    Args:
        images, reconstructions: (M, C, H, W).
        peak: largest difference that two pixels can have: 255 for bytes, 2 for values in [-1, 1].

    Returns:
        infinity for an image without any error.
    """
    errors = np.square(images.astype(np.float64) - reconstructions).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return 10.0 * np.log10(peak**2 / errors)
