"""The metric mutual information gap (MIG): how much more the best code tells about a factor than the second best.

M samples, N codes, F factors. The definition is that of Chen et al., arXiv 1802.04942, in the discretised form of
disentanglement_lib: each code is divided into bins of equal width between its smallest and its largest value.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raydis.errors import MetricError
from raydis.metrics.checks import Status, check_table, constant_factors, invalid_reason, varying_factors


@dataclass(frozen=True)
class MigResult:
    """The result of `mig`. Its numbers are None unless the status is "valid".

    Attributes:
        status, reason: "invalid" and the reason if the codes cannot be scored.
        constant_factors: columns of `factors` that never vary. They are left out.
        score: mean gap over the varying factors, in [0, 1].
        information: (N, F), mutual information of each code and factor in nats; 0 for constant factors.
    """

    status: Status
    reason: str | None
    constant_factors: tuple[int, ...]
    score: float | None = None
    information: NDArray[np.float64] | None = None


def mig(
    codes: ArrayLike, factors: ArrayLike, *, rng: np.random.Generator, num_samples: int = 10_000, num_bins: int = 20
) -> MigResult:
    """Compute the mutual information gap of codes (M, N) and factors (M, F).

    Report it together with DCI: one outlier pushes the other values of a code into a few bins, and unused codes have no
    effect.

    Args:
        rng: draws the samples, with replacement from the given rows.
        num_samples: number of rows that are drawn.
        num_bins: number of bins of each code.

    Returns:
        The result, which is invalid and without numbers if codes are not finite or all are constant.

    Raises:
        MetricError: a table that cannot be scored (see `check_table`), fewer than two units, or sizes out of range.
    """
    codes, factors = check_table(codes, factors)
    if codes.shape[1] < 2:
        raise MetricError("mig compares the best unit with the second best: give the codes of at least two units")
    if num_samples < 2 or num_bins < 2:
        raise MetricError(f"num_samples={num_samples} and num_bins={num_bins} must be at least 2")
    constant = constant_factors(factors)
    reason = invalid_reason(codes)
    if reason is not None:
        return MigResult("invalid", reason, constant)
    rows = rng.integers(len(codes), size=num_samples)
    varying = varying_factors(factors)
    information = np.zeros((codes.shape[1], factors.shape[1]))
    information[:, varying], entropies = information_matrix(codes[rows], factors[rows][:, varying], num_bins)
    gaps: list[float] = []
    for factor, entropy in zip(varying, entropies, strict=True):
        second, best = np.sort(information[:, factor])[-2:]
        gaps.append((best - second) / entropy if entropy > 0 else 0.0)
    return MigResult("valid", None, constant, float(np.mean(gaps)), information)


def information_matrix(
    codes: NDArray[np.float64], factors: NDArray[np.int64], num_bins: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mutual information (N, F) of binned codes (M, N) with factors (M, F), and the factors' entropies (F,).

    Both are in nats.
    """
    bins = [discretise(column, num_bins) for column in codes.T]
    information, entropies = np.empty((codes.shape[1], factors.shape[1])), np.empty(factors.shape[1])
    for j, column in enumerate(factors.T):
        values, drawn = np.unique(column, return_inverse=True)
        entropies[j] = mutual_information(drawn, drawn, len(values), len(values))
        information[:, j] = [mutual_information(code, drawn, num_bins, len(values)) for code in bins]
    return information, entropies


def discretise(code: NDArray[np.float64], num_bins: int) -> NDArray[np.int64]:
    """Divide a code into bins of equal width, as numpy.histogram does: (M,) -> (M,) in 0..num_bins - 1.

    If the range of a code is so small that floating-point numbers cannot divide it, the code is constant up to rounding
    and has one bin.
    """
    edges: NDArray[np.float64] = np.linspace(float(code.min()), float(code.max()), num_bins + 1)
    if (edges[1:] <= edges[:-1]).any():
        return np.zeros(len(code), np.int64)
    return np.digitize(code, edges[:-1]) - 1


def mutual_information(a: NDArray[np.integer], b: NDArray[np.integer], num_a: int, num_b: int) -> float:
    """Return the mutual information, in nats, of two columns (M,) of levels 0..num_a - 1 and 0..num_b - 1.

    That of a column with itself is its entropy.
    """
    joint = np.bincount(a * num_b + b, minlength=num_a * num_b).reshape(num_a, num_b) / len(a)
    independent = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    seen = joint > 0
    return max(float((joint[seen] * np.log(joint[seen] / independent[seen])).sum()), 0.0)
