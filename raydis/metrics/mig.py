"""Mutual information gap: by how much the best code of a factor beats the second best.

M samples, N codes, F factors. Chen et al., arXiv 1802.04942, in the discretised form of disentanglement_lib: each code
is cut into bins of equal width between its least and its largest value.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raydis.errors import MetricError
from raydis.metrics.checks import Status, check_table, constant_factors, invalid_reason, varying_factors


@dataclass(frozen=True)
class MigResult:
    """What `mig` found; numbers are None unless the status is "valid".

    Attributes:
        status, reason: "invalid" with its reason where codes cannot be scored.
        constant_factors: columns of `factors` that never vary, and are left out.
        score: mean gap over the varying factors, in [0, 1].
        information: (N, F), mutual information of each code and factor, nats; 0 for constant factors.
    """

    status: Status
    reason: str | None
    constant_factors: tuple[int, ...]
    score: float | None = None
    information: NDArray[np.float64] | None = None


def mig(
    codes: ArrayLike, factors: ArrayLike, *, rng: np.random.Generator, num_samples: int = 10_000, num_bins: int = 20
) -> MigResult:
    """Mutual information gap of codes (M, N) and factors (M, F).

    One outlier squeezes the rest of a code into few bins, and dead codes cost nothing: read it beside DCI.

    Args:
        rng: draws the samples, with replacement from the rows given.
        num_samples: rows drawn.
        num_bins: bins of a code.

    Raises:
        MetricError: a table that cannot be scored (see `check_table`), fewer than two codes, or sizes out of range.
    """
    codes, factors = check_table(codes, factors)
    if codes.shape[1] < 2:
        raise MetricError("mig compares the best code with the second best: give at least two codes")
    if num_samples < 2 or num_bins < 2:
        raise MetricError(f"num_samples={num_samples} and num_bins={num_bins} must be at least 2")
    constant = constant_factors(factors)
    reason = invalid_reason(codes)
    if reason is not None:
        return MigResult("invalid", reason, constant)
    rows = rng.integers(len(codes), size=num_samples)
    levels = [discretise(column, num_bins) for column in codes[rows].T]
    information = np.zeros((codes.shape[1], factors.shape[1]))
    gaps: list[float] = []
    for factor in varying_factors(factors):
        values, drawn = np.unique(factors[rows, factor], return_inverse=True)
        entropy = mutual_information(drawn, drawn, len(values), len(values))
        information[:, factor] = [mutual_information(level, drawn, num_bins, len(values)) for level in levels]
        second, best = np.sort(information[:, factor])[-2:]
        gaps.append((best - second) / entropy if entropy > 0 else 0.0)
    return MigResult("valid", None, constant, float(np.mean(gaps)), information)


def discretise(code: NDArray[np.float64], num_bins: int) -> NDArray[np.int64]:
    """Bins of equal width from least to largest value: (M,) -> (M,) in 0..num_bins - 1, as numpy's histogram cuts.

    A code whose range numbers are too coarse to cut is constant but for rounding: it has one bin.
    """
    edges: NDArray[np.float64] = np.linspace(float(code.min()), float(code.max()), num_bins + 1)
    if (edges[1:] <= edges[:-1]).any():
        return np.zeros(len(code), np.int64)
    return np.digitize(code, edges[:-1]) - 1


def mutual_information(a: NDArray[np.integer], b: NDArray[np.integer], num_a: int, num_b: int) -> float:
    """Mutual information, nats, of two columns (M,) of levels 0..num - 1; of a column with itself: its entropy."""
    joint = np.bincount(a * num_b + b, minlength=num_a * num_b).reshape(num_a, num_b) / len(a)
    independent = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    seen = joint > 0
    return max(float((joint[seen] * np.log(joint[seen] / independent[seen])).sum()), 0.0)
