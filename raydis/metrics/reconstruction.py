"""Measure how well a model reconstructs images: PSNR and SSIM.

M images, C H W image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from raydis.errors import MetricError

WINDOW = 11  # pixels
LEAST_ERROR = 1e-16  # smallest mean squared error that counts, as a fraction of peak^2


@dataclass(frozen=True)
class Reconstruction:
    """How well a model reconstructs images.

    Attributes:
        psnr: mean over the images, in dB.
        ssim: mean over the images; None if they are smaller than a window.
        frechet_distance: between the features of the images and those of their reconstructions; None if no network is
            given for the features. With those of the Inception network, it is FID.
    """

    psnr: float
    ssim: float | None = None
    frechet_distance: float | None = None

    def to_dict(self) -> dict[str, float | None]:
        """Return the numbers by name."""
        return asdict(self)

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Self | None:
        """Return the numbers of a mapping, which may hold other keys, too; None if there is no PSNR."""
        if found.get("psnr") is None:
            return None
        return cls(found["psnr"], found.get("ssim"), found.get("frechet_distance"))

    def __str__(self) -> str:
        """Return one line, such as `PSNR 24.31 dB, SSIM 0.872`."""
        parts = [f"PSNR {self.psnr:.2f} dB"]
        parts += [] if self.ssim is None else [f"SSIM {self.ssim:.3f}"]
        parts += [] if self.frechet_distance is None else [f"Fréchet distance {self.frechet_distance:.2f}"]
        return ", ".join(parts)


def psnr(images: np.ndarray, reconstructions: np.ndarray, *, peak: float) -> np.ndarray:
    """Return the peak signal-to-noise ratio of each image, 10 log10(peak^2 / mean squared error), in dB.

    Args:
        images, reconstructions: (M, C, H, W).
        peak: largest possible difference of two pixels: 255 for bytes, 2 for values in [-1, 1].

    Returns:
        (M,) float64, at most 160. An image without any error has 160 instead of infinity, which would make the mean of
        all images infinite.

    Raises:
        MetricError: shapes that differ.
    """
    _check_pairs(images, reconstructions)
    errors = np.square(images.astype(np.float64) - reconstructions).mean(axis=(1, 2, 3))
    return 10.0 * np.log10(peak**2 / np.maximum(errors, LEAST_ERROR * peak**2))


def ssim(images: np.ndarray, reconstructions: np.ndarray, *, peak: float) -> np.ndarray:
    """Return the structural similarity of each image and its reconstruction (Wang et al. 2004).

    As published: Gaussian windows of 11 x 11 pixels with a standard deviation of 1.5, and the constants 0.01 and 0.03.
    The mean is over the windows that lie within the image, and over the channels.

    Args:
        images, reconstructions: (M, C, H, W), H and W at least 11.
        peak: largest possible difference of two pixels: 255 for bytes, 2 for values in [-1, 1].

    Returns:
        (M,) float64, in [-1, 1]; 1 for equal images.

    Raises:
        MetricError: shapes that differ, or images smaller than a window.
    """
    _check_pairs(images, reconstructions)
    if min(images.shape[2:]) < WINDOW:
        raise MetricError(
            f"images of shape {images.shape} must be at least {WINDOW} pixels high and wide, the size of a window: "
            "leave out SSIM"
        )
    x, y = images.astype(np.float64), reconstructions.astype(np.float64)
    mean_x, mean_y = _windowed(x), _windowed(y)
    var_x, var_y = _windowed(x * x) - mean_x**2, _windowed(y * y) - mean_y**2
    covariance = _windowed(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    alike = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return (alike / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean(axis=(1, 2, 3))


def _check_pairs(images: np.ndarray, reconstructions: np.ndarray) -> None:
    """Raise MetricError unless both are images (M, C, H, W) of one shape, for numpy would broadcast others silently."""
    if images.ndim != 4 or 0 in images.shape or images.shape != reconstructions.shape:
        raise MetricError(
            f"images of shape {images.shape} and reconstructions of shape {reconstructions.shape} cannot be compared: "
            "give one reconstruction (C, H, W) for each image, as arrays of one shape (M, C, H, W)"
        )


def _windowed(images: np.ndarray) -> np.ndarray:
    """Return the Gaussian mean of each window of (M, C, H, W): (M, C, H - 10, W - 10)."""
    place = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(place**2) / (2 * 1.5**2))
    weights /= weights.sum()
    for axis in (2, 3):
        windows = np.lib.stride_tricks.sliding_window_view(images, WINDOW, axis=axis)
        images = windows @ weights
    return images
