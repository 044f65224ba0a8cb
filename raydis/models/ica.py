"""Independent component analysis (ICA): the linear map whose outputs are as far from Gaussian as possible.

M samples, N units.

If the units are an invertible linear mixture of independent numbers, of which at most one is Gaussian, then ICA finds
these numbers up to their order, signs and scales. What is maximised is that of FastICA (Hyvarinen, IEEE Transactions on
Neural Networks 10, 1999): the negentropy of all components together, approximated by log cosh. FastICA's iteration may
never come to rest on units that are no such mixture, and then amplifies rounding. Here each step raises the negentropy,
as in Picard (Ablin, Cardoso and Gramfort, 2018), so there is always a result, the same on every processor.

Order and signs are fixed, so that two seeds find the same components: the order is that of falling negentropy, and the
skewness of each component is positive.

This file needs no PyTorch, so that codes from anywhere can be rotated; `ica_head.py` holds the map as part of a model.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import expm

from raydis.errors import FitError

MAX_ITERATIONS = 1000
TOLERANCE = 1e-6
NUM_STARTS = 3  # the best maximum counts
LARGEST_ANGLE = 0.3  # of a step, radians
NUM_HALVINGS = 12
GAUSSIAN_CONTRAST = 0.374567207491438  # mean of log cosh of a standard normal number
GAUSSIAN_DEVIATION = 0.0795479  # times 1 / sqrt(M): the standard error of that mean over M standardised normal numbers
GAUSSIAN_ERRORS = 6.0  # a component this many standard errors from a Gaussian, or fewer, counts as Gaussian
FIT_SAMPLES = 10_000  # of a large table, which suffice for the directions of its components

Floats = NDArray[np.float64]


class Shape(NamedTuple):
    """How far the distribution of each of N units is from a Gaussian, (N,) each; NaN for a constant unit.

    Attributes:
        negentropy: (E log cosh u - E log cosh g)^2 of the standardised unit u and a standard normal g, which FastICA
            maximises. It is 0 for a Gaussian.
        kurtosis: excess kurtosis; -1.2 for a uniform distribution, 0 for a Gaussian, 3 for a Laplace distribution.
        gaussian: whether the unit cannot be told from a Gaussian.
    """

    negentropy: Floats
    kurtosis: Floats
    gaussian: NDArray[np.bool_]


def shape_of(units: Floats) -> Shape:
    """Measure the distributions of units (M, N)."""
    deviations = units.std(0)
    standard = (units - units.mean(0)) / np.where(deviations > 0.0, deviations, np.nan)
    contrast = log_cosh(standard).mean(0) - GAUSSIAN_CONTRAST
    error = GAUSSIAN_DEVIATION / math.sqrt(len(units))
    return Shape(contrast**2, (standard**4).mean(0) - 3.0, np.abs(contrast) < GAUSSIAN_ERRORS * error)


def log_cosh(values: Floats) -> Floats:
    """Return log cosh of values, without overflow."""
    size = np.abs(values)
    return size + np.log1p(np.exp(-2.0 * size)) - math.log(2.0)


def find_rotation(
    whitened: Floats, *, seed: int, max_iterations: int = MAX_ITERATIONS, tolerance: float = TOLERANCE
) -> Floats:
    """Return the orthogonal matrix (N, N) that maps whitened samples (M, N) to independent components.

    Args:
        whitened: samples of mean 0 and covariance 1.
        seed: of the random starts.
        max_iterations: most steps from a start.
        tolerance: angle of a step, in radians, below which a start has converged.

    Raises:
        FitError: no start converges.
    """
    samples, rng = whitened.astype(np.float64), np.random.default_rng(seed)
    num_units = samples.shape[1]
    starts = [np.eye(num_units), *(np.linalg.qr(rng.normal(size=(num_units,) * 2))[0] for _ in range(NUM_STARTS - 1))]
    found = [ascend(samples, start, max_iterations, tolerance) for start in starts]
    converged = [each for each in found if each is not None]
    if not converged:
        raise FitError(
            f"ICA did not converge within {max_iterations} iterations: raise method.max_iterations or "
            "method.tolerance, or lower method.num_units"
        )
    rotation = max(converged, key=lambda each: each[1])[0]
    components = samples @ rotation.T
    signs = np.where((components**3).mean(0) < 0.0, -1.0, 1.0)
    order = np.argsort(-shape_of(components).negentropy, kind="stable")
    return (rotation * signs[:, None])[order].astype(whitened.dtype)


def ascend(samples: Floats, rotation: Floats, max_iterations: int, tolerance: float) -> tuple[Floats, float] | None:
    """Raise the negentropy of samples (M, N) @ rotation.T, summed over the components, to a maximum.

    A step rotates every pair of components at once, by the gradient divided by the curvature of that pair alone.

    Returns:
        the rotation (N, N) and its negentropy; None if the steps do not come to rest.
    """
    components = samples @ rotation.T
    contrast = _contrast(components)
    for _ in range(max_iterations):
        slope = np.tanh(components)
        product = slope.T @ components / len(samples)  # E tanh(u_i) u_j
        bend = (1.0 - slope**2).T @ components**2 / len(samples)  # E tanh'(u_i) u_j^2
        weighted = contrast[:, None] * product
        curvature = product**2 + contrast[:, None] * (bend - np.diag(product)[:, None])
        curvature = np.abs(curvature + curvature.T)
        turn = (weighted - weighted.T) / np.maximum(curvature, 1e-3 * curvature.max())
        largest = np.abs(turn).max()
        if largest < tolerance:
            return rotation, float((contrast**2).sum())
        turn *= min(1.0, LARGEST_ANGLE / largest)
        # A sum of squares of numbers that are each known to the rounding of 1.
        rounding = 4.0 * np.finfo(float).eps * np.abs(contrast).sum()
        for halvings in range(NUM_HALVINGS):
            step = expm(turn / 2**halvings)
            moved = components @ step.T
            reached = _contrast(moved)
            if (reached**2).sum() >= (contrast**2).sum() - rounding:
                break
        else:  # no way leads up
            return rotation, float((contrast**2).sum())
        rotation, components, contrast = step @ rotation, moved, reached
    return None


def _contrast(components: Floats) -> Floats:
    """Return E log cosh u - E log cosh g of components (M, N) of variance 1, whose squares are their negentropies."""
    return log_cosh(components).mean(0) - GAUSSIAN_CONTRAST


class Whitening(NamedTuple):
    """The map from samples to mean 0 and covariance 1: `(samples - mean) @ forward.T`, and its inverse."""

    mean: Floats  # (N,)
    forward: Floats  # (N, N)
    backward: Floats  # (N, N)


def whiten(samples: Floats) -> Whitening:
    """Return the whitening of samples (M, N).

    Raises:
        FitError: the samples are not finite, or vary in fewer than N directions.
    """
    if not np.isfinite(samples).all():
        raise FitError("the units are not finite: lower train.learning_rate")
    variances, axes = principal_axes(samples)
    if len(variances) < samples.shape[1]:
        raise FitError(f"{samples.shape[1]} units vary in {len(variances)} directions only: lower method.num_units")
    deviations = np.sqrt(variances)
    return Whitening(samples.mean(0), (axes / deviations).T, axes * deviations)


def principal_axes(samples: Floats) -> tuple[Floats, Floats]:
    """Return the variances (K,), rising, and the directions (N, K) in which samples (M, N) vary.

    Directions without variance get one from rounding. They are left out, because whitening would scale this variance
    up to that of the others.
    """
    variances, axes = np.linalg.eigh(np.atleast_2d(np.cov(samples, rowvar=False, ddof=0)))
    varying = variances > 1e-10 * variances[-1]
    return variances[varying], axes[:, varying]


def independent_components(units: Floats, *, seed: int) -> Floats:
    """Return the independent components of units (M, N): (M, K), one for each of the K directions in which they vary.

    The scales of the units have no influence.

    Args:
        seed: of the random starts, and of the rows that ICA is fitted to if there are more than FIT_SAMPLES.

    Raises:
        FitError: no start converges.
    """
    deviations = units.std(0)
    scaled = (units - units.mean(0))[:, deviations > 0.0] / deviations[deviations > 0.0]
    rows = np.random.default_rng(seed).permutation(len(units))[:FIT_SAMPLES]
    variances, axes = principal_axes(scaled[rows])
    whitened = (scaled - scaled[rows].mean(0)) @ (axes / np.sqrt(variances))
    return whitened @ find_rotation(whitened[rows], seed=seed).T
