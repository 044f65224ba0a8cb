"""Reduce the vectors of latent units to scalars, which the metrics need. M samples, N units, D unit width."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raydis.errors import MetricError

_BLOCK_ELEMENTS = 1 << 21  # 16 MiB in float64; only one block at a time is converted to float64


def per_unit_pca(codes: ArrayLike) -> NDArray[np.float64]:
    """Return the first principal component of each unit, fitted to all given rows without scaling.

    DisDiff (arXiv 2301.13721) and DyGA+SD (arXiv 2410.23820) evaluate their codes in this way.

    Their published evaluations run scikit-learn's principal component analysis (PCA) unit by unit over the whole
    encoded data set. Here all units share one pass for the means, one for the covariances, and one batched
    eigendecomposition.

    Args:
        codes: (M, N, D), or (M, N) if units are scalars, which are only centred.

    Returns:
        (M, N), each column with mean zero. Signs are chosen so that the loading of largest magnitude is positive. A
        constant unit gives zeros. A unit with NaN or infinity gives NaN, which the metrics report.

    Raises:
        MetricError: codes that are not real numbers, have no rows, or have neither two nor three axes.
    """
    codes = np.asarray(codes)
    if codes.ndim not in (2, 3) or 0 in codes.shape or codes.dtype.kind not in "fiub":
        raise MetricError(f"codes must be real numbers (M, N) or (M, N, D), found {codes.dtype} {codes.shape}")
    if codes.ndim == 2:
        codes = codes[:, :, None]
    num_samples, num_units, dim = codes.shape
    with np.errstate(invalid="ignore", over="ignore"):  # non-finite units become NaN, see above
        zero = np.zeros((num_units, dim))
        mean = sum((block.sum(axis=0) for _, block in _blocks(codes, zero)), start=zero) / num_samples
        mean[~np.isfinite(mean)] = np.nan
        direction = np.ones((num_units, 1)) if dim == 1 else _first_axes(codes, mean)
        projected = np.empty((num_samples, num_units))
        for rows, block in _blocks(codes, mean):
            projected[rows] = np.einsum("mnd,nd->mn", block, direction)
    return projected


def _first_axes(codes: NDArray[np.number], mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the unit vectors (N, D) along which the units of codes (M, N, D) vary most."""
    scatter = np.zeros((*mean.shape, mean.shape[1]))  # (N, D, D)
    for _, block in _blocks(codes, mean):
        scatter += block.transpose(1, 2, 0) @ block.transpose(1, 0, 2)
    finite = np.all(np.isfinite(scatter), axis=(1, 2))
    _, vectors = np.linalg.eigh(np.where(finite[:, None, None], scatter, 0.0))
    axes = vectors[:, :, -1]
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1)
    axes = axes * np.sign(largest)
    axes[~finite] = np.nan
    return axes


def _blocks(codes: NDArray[np.number], mean: NDArray[np.float64]) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Yield blocks of rows in float64, minus row 0 and minus `mean`, so that a constant unit gives exact zeros."""
    size = max(1, _BLOCK_ELEMENTS // codes[0].size)
    origin = codes[0].astype(np.float64)
    for start in range(0, len(codes), size):
        rows = slice(start, start + size)
        yield rows, (codes[rows].astype(np.float64) - origin) - mean
