"""Reduce the vectors of latent units to scalars, which the metrics need. M samples, N units, D unit width."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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


def all_scalars(codes: ArrayLike, widths: Sequence[int]) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Return all entries of vectors as scalars, and the unit of each, for metrics of units that are vectors.

    The scale of a unit's vectors is arbitrary, but FactorVAE leaves out scalars of small deviation. Each unit is
    therefore centred and divided by one number that makes the mean variance of its entries 1; the entries of a unit
    keep their relative scales.

    Args:
        codes: (M, N, D), with zeros beyond the width of a unit.
        widths: N widths, at most D.

    Returns:
        (M, S) and (S,), with S the sum of the widths. A constant unit gives zeros, a unit with NaN or infinity NaN.

    Raises:
        MetricError: codes that are not real numbers (M, N, D), or widths that do not fit them.
    """
    codes, wide = np.asarray(codes), list(widths)
    if codes.ndim != 3 or 0 in codes.shape or codes.dtype.kind not in "fiub":
        raise MetricError(f"codes of vectors must be real numbers (M, N, D), found {codes.dtype} {codes.shape}")
    if len(wide) != codes.shape[1] or not all(1 <= width <= codes.shape[2] for width in wide):
        raise MetricError(f"widths {wide} do not fit {codes.shape}: give each unit one from 1 to {codes.shape[2]}")
    found: list[NDArray[np.float64]] = []
    with np.errstate(invalid="ignore", over="ignore"):  # non-finite units become NaN
        for unit, width in enumerate(wide):
            entries = codes[:, unit, :width].astype(np.float64)
            entries -= entries[0]  # a constant unit gives exact zeros
            entries -= entries.mean(axis=0)
            scale = np.sqrt(entries.var(axis=0).mean())
            found.append(entries / (scale if scale != 0 else 1.0))
    return np.concatenate(found, axis=1), np.repeat(np.arange(len(wide)), wide)


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
