"""Mutual information of continuous codes and discrete factors, by nearest neighbours. M samples, N codes, F factors.

The estimator is that of Ross (2014), as in scikit-learn's `mutual_info_classif`, to which the numbers are equal up to
the order of sums. For a sample i of a level with m_i samples, let d_i be the distance to its k-th nearest neighbour in
its level (k = 10, or m_i - 1 if that is smaller), and n_i the number of samples of any level that lie closer than d_i,
itself included. With the digamma function psi and means over the samples of levels with at least two:

    I = psi(M) + mean psi(k_i) - mean psi(m_i) - mean psi(n_i), and 0 if that is negative

Codes are scaled to a standard deviation of 1, and tiny noise separates equal values. The library builds two trees for
each pair of a code and a factor. In one dimension, sorted values do the same: the k nearest lie in a window of the
sorted level, and n_i is the difference of two places in the sorted code, which all factors share.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_NOISE = 1e-10  # of scikit-learn, relative to the mean size of a code's values, or to 1 if that is smaller


def nearest_information(
    codes: NDArray[np.float64], factors: NDArray[np.int64], *, seed: int, num_neighbors: int
) -> NDArray[np.float64]:
    """Return the mutual information, in nats, of codes (M, N) with factors (M, F): (N, F).

    Args:
        seed: of the noise that separates equal values.
        num_neighbors: k, at least 1.
    """
    separated = _separated(codes, seed)
    levels = [np.unique(column, return_inverse=True)[1] for column in factors.T]
    found = np.empty((codes.shape[1], factors.shape[1]))
    for i, column in enumerate(separated.T):
        order = np.argsort(column, kind="stable")
        ascending = column[order]
        for j, level in enumerate(levels):
            found[i, j] = _information(ascending, level[order], num_neighbors)
    return found


def _separated(codes: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Return codes divided by their standard deviations, plus the library's noise."""
    deviation = codes.std(axis=0)
    constant = deviation <= 10 * np.finfo(np.float64).eps * np.abs(codes).max(axis=0)
    scaled = codes / np.where(constant, 1.0, deviation)
    noise = np.random.RandomState(seed).standard_normal(size=codes.shape)  # the library's generator
    return scaled + _NOISE * np.maximum(1.0, np.abs(scaled).mean(axis=0)) * noise


def _information(ascending: NDArray[np.float64], level: NDArray[np.intp], num_neighbors: int) -> float:
    """Return the mutual information of sorted values (M,) with their levels (M,), counted from 0."""
    order = np.argsort(level, kind="stable")  # by level, and by value within each
    count = np.bincount(level)
    ends = np.cumsum(count)
    distance, neighbors, size = np.empty(len(level)), np.empty(len(level)), np.empty(len(level))
    for start, end in zip(ends - count, ends, strict=True):
        if end - start > 1:
            k = min(num_neighbors, end - start - 1)
            distance[start:end] = _kth_distance(ascending[order[start:end]], k)
            neighbors[start:end], size[start:end] = k, end - start
    kept = np.repeat(count > 1, count)  # a level that occurs once has no neighbours and is left out
    if not kept.any():
        return 0.0
    places, distance = order[kept], distance[kept]
    values = ascending if kept.all() else np.sort(ascending[places])
    closer = _num_closer(values, ascending[places], distance)
    terms = _mean_digamma(neighbors[kept]) - _mean_digamma(size[kept]) - _mean_digamma(closer)
    return max(0.0, _mean_digamma(np.array([len(places)])) + terms)


def _mean_digamma(counts: NDArray[np.number]) -> float:
    from scipy.special import digamma  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]  (slow)

    values: NDArray[np.float64] = np.asarray(digamma(counts), np.float64)
    return float(values.mean())


def _kth_distance(ascending: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """Return the distance of each of the sorted values (M,) to its k-th nearest neighbour, k below M.

    The k nearest and the value itself are k + 1 neighbours in order. Of all windows of k + 1 values that contain the
    value, the one with the nearest far end holds them.
    """
    padded = np.concatenate([np.full(k, -np.inf), ascending, np.full(k, np.inf)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, len(ascending))  # row r is shifted by r - k
    reach = [np.maximum(ascending - windows[k - left], windows[2 * k - left] - ascending) for left in range(k + 1)]
    return np.min(reach, axis=0)


def _num_closer(
    ascending: NDArray[np.float64], values: NDArray[np.float64], distance: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Return how many of the sorted values (M,) lie closer than `distance` to each of `values`, which they contain."""
    low = np.searchsorted(ascending, values - distance, side="right")
    high = np.searchsorted(ascending, values + distance, side="left")
    # The ends above are rounded. Move them until the differences themselves, as the definition has them, are smaller.
    last = len(ascending) - 1
    while (wrong := (low > 0) & (values - ascending[np.maximum(low - 1, 0)] < distance)).any():
        low -= wrong
    while (wrong := (low <= last) & (values - ascending[np.minimum(low, last)] >= distance)).any():
        low += wrong
    while (wrong := (high <= last) & (ascending[np.minimum(high, last)] - values < distance)).any():
        high += wrong
    while (wrong := (high > 0) & (ascending[np.maximum(high - 1, 0)] - values >= distance)).any():
        high -= wrong
    return np.maximum(high - low, 1)  # of equal values, which lie at a distance of 0, each counts itself
