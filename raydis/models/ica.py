"""Independent component analysis (ICA): the linear map whose outputs are as far from Gaussian as possible.

M samples, N units.

If the units are an invertible linear mixture of independent numbers, of which at most one is Gaussian, then ICA finds
these numbers up to their order, signs and scales. What is maximised is that of FastICA (Hyvarinen, IEEE Transactions on
Neural Networks 10, 1999): the negentropy of all components together, approximated by log cosh. FastICA's iteration may
never come to rest on units that are no such mixture, and then amplifies rounding. Here each step raises the negentropy,
as in Picard (Ablin, Cardoso and Gramfort, 2018), so there is always a result, the same on every processor.

Order and signs are fixed, so that two seeds find the same components: the order is that of falling negentropy, and the
skewness of each component is positive.
"""

from __future__ import annotations

import logging
import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import expm
from torch import Tensor, nn

from raydis.errors import FitError

MAX_ITERATIONS = 1000
TOLERANCE = 1e-6
NUM_STARTS = 3  # the best maximum counts
LARGEST_ANGLE = 0.3  # of a step, radians
NUM_HALVINGS = 12
GAUSSIAN_CONTRAST = 0.374567207491438  # mean of log cosh of a standard normal number
GAUSSIAN_DEVIATION = 0.0795479  # times 1 / sqrt(M): the standard error of that mean over M standardised normal numbers
GAUSSIAN_ERRORS = 6.0  # a component this many standard errors from a Gaussian, or fewer, counts as Gaussian

UNFITTED, FITTED, FAILED = range(3)

Floats = NDArray[np.float64]
log = logging.getLogger(__name__)


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
    mean = samples.mean(0)
    variances, axes = np.linalg.eigh(np.cov(samples, rowvar=False, ddof=0))
    # Directions without variance get one from rounding, which whitening would scale up to that of the first.
    varying = int((variances > 1e-10 * variances[-1]).sum())
    if varying < samples.shape[1]:
        raise FitError(f"{samples.shape[1]} units vary in {varying} directions only: lower method.num_units")
    deviations = np.sqrt(variances)
    return Whitening(mean, (axes / deviations).T, axes * deviations)


class IcaHead(nn.Module):
    """An invertible affine map from units to independent components. It is fitted in closed form, not by gradients.

    Before it is fitted, and after a fit that failed, it is the identity.

    Args:
        num_units: N.
        max_iterations, tolerance: see `find_rotation`.
    """

    def __init__(self, num_units: int, *, max_iterations: int = MAX_ITERATIONS, tolerance: float = TOLERANCE) -> None:
        super().__init__()
        self.max_iterations = max_iterations
        self.tolerance = tolerance
        self.register_buffer("mean", torch.zeros(num_units))
        self.register_buffer("unmixing", torch.eye(num_units))
        self.register_buffer("mixing", torch.eye(num_units))
        self.register_buffer("state", torch.tensor(UNFITTED))
        self.mean: Tensor
        self.unmixing: Tensor
        self.mixing: Tensor
        self.state: Tensor

    def fit(self, units: Tensor) -> None:
        """Fit the map to units (M, N). If that fails, log the reason as a warning; see `not_ready`."""
        samples = units.detach().cpu().double().numpy()
        try:
            white = whiten(samples)
            rotation = find_rotation(
                (samples - white.mean) @ white.forward.T,
                seed=0,
                max_iterations=self.max_iterations,
                tolerance=self.tolerance,
            )
        except FitError as error:
            log.warning("the units are not rotated to independent components: %s", error)
            identity = np.eye(samples.shape[1])
            self._set(np.zeros(samples.shape[1]), identity, identity, FAILED)
        else:
            self._set(white.mean, rotation @ white.forward, white.backward @ rotation.T, FITTED)

    def _set(self, mean: Floats, unmixing: Floats, mixing: Floats, state: int) -> None:
        for buffer, values in ((self.mean, mean), (self.unmixing, unmixing), (self.mixing, mixing)):
            buffer.copy_(torch.from_numpy(values))
        self.state.fill_(state)

    def not_ready(self) -> str | None:
        """Return why there are no independent components; None if there are."""
        if int(self.state) == FITTED:
            return None
        if int(self.state) == UNFITTED:
            return "independent components have not been fitted to the units yet: let training reach a checkpoint"
        return (
            "the units have no independent components: ICA did not converge, or the units vary in fewer directions "
            "than there are units. Lower method.num_units or train longer"
        )

    def forward(self, units: Tensor) -> Tensor:
        """Map units (B, N) to components (B, N)."""
        return (units - self.mean) @ self.unmixing.T

    def inverse(self, components: Tensor) -> Tensor:
        """Map components (B, N) back to units (B, N)."""
        return components @ self.mixing.T + self.mean
