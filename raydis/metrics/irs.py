"""The metric IRS: how little a code changes while its factor is fixed and the others vary.

M samples, N codes, F factors.

Definition (interventional robustness score, Suter et al., arXiv 1811.00007; formulas and sizes as in
disentanglement_lib's irs.py). For code i and factor j, with the rows grouped by the level of factor j:

    d_ij  = mean over levels of the 99th percentile of |z_i - mean of z_i in the group|
    IRS_i = max over j of 1 - d_ij / max |z_i - mean of z_i|
    IRS   = mean of IRS_i over the codes that vary, weighted by max |z_i - mean of z_i|

The paper takes the maximum instead of the 99th percentile (`quantile=1`).

Range: 0 to 1 (a negative value, which a lopsided code can have, counts 0). Noise codes score well above 0, because the
largest deviation of many samples exceeds the 99th percentile: perfect codes with four spare units of noise read 0.59.
Several codes for one factor do not lower it. A code of large scale has a large weight. Cost: below 0.1 CPU-seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raydis.errors import MetricError
from raydis.metrics.checks import Status, check_table, constant_factors, invalid_reason, varying_factors


@dataclass(frozen=True, eq=False)
class IrsResult:
    """The result of `irs`. It has numbers only if `status` is "valid".

    Attributes:
        constant_factors: columns of `factors` that never vary. They are left out.
        num_active: number of codes that vary.
        score: weighted mean over these codes.
        robustness: 1 - d_ij / max |z_i - mean of z_i|, (N, F), with 0 for constant codes and factors.
    """

    status: Status
    reason: str | None
    constant_factors: tuple[int, ...]
    num_active: int = 0
    score: float | None = None
    robustness: NDArray[np.float64] | None = None


def irs(
    codes: ArrayLike,
    factors: ArrayLike,
    *,
    rng: np.random.Generator,
    num_samples: int = 10_000,
    quantile: float = 0.99,
) -> IrsResult:
    """Compute the interventional robustness score of codes (M, N) and integer factors (M, F).

    Args:
        rng: draws the rows, with replacement.
        num_samples: number of rows.
        quantile: quantile of the deviations within a group, in (0, 1].

    Returns:
        The result, which is invalid and without numbers if codes are not finite, or constant in the rows drawn.

    Raises:
        MetricError: a table that cannot be scored (see `check_table`), or an argument out of range.
    """
    codes, factors = check_table(codes, factors)
    if num_samples < 2 or not 0 < quantile <= 1:
        raise MetricError(f"{num_samples=} must be at least 2, and {quantile=} above 0 and at most 1")
    constant, varying = constant_factors(factors), varying_factors(factors)
    if (reason := invalid_reason(codes)) is not None:
        return IrsResult("invalid", reason, constant)
    rows = rng.integers(len(codes), size=num_samples)
    drawn, levels = codes[rows], factors[rows][:, varying]
    largest = np.abs(drawn - drawn.mean(axis=0)).max(axis=0)  # (N,)
    active = (drawn != drawn[0]).any(axis=0)
    if not active.any():
        return IrsResult("invalid", "all units are constant in the rows that were drawn: raise num_samples", constant)
    robustness = np.zeros((codes.shape[1], factors.shape[1]))
    deviations = group_deviations(drawn[:, active], levels, quantile)
    robustness[np.ix_(active, varying)] = 1.0 - deviations / largest[active, None]
    score = float(np.average(robustness[np.ix_(active, varying)].max(axis=1), weights=largest[active]))
    return IrsResult("valid", None, constant, int(active.sum()), max(score, 0.0), robustness)


def group_deviations(codes: NDArray[np.float64], factors: NDArray[np.int64], quantile: float) -> NDArray[np.float64]:
    """Return d_ij (N, F): the quantile of each code's deviation from its group's mean, as a mean over groups.

    Args:
        codes: (M, N).
        factors: (M, F); the levels of one factor are its groups.
        quantile: in (0, 1].
    """
    found = np.empty((codes.shape[1], factors.shape[1]))
    for j, column in enumerate(factors.T):
        order = np.argsort(column, kind="stable")
        starts = np.flatnonzero(np.diff(column[order])) + 1
        groups = np.split(codes[order], starts)
        edges = [np.quantile(np.abs(group - group.mean(axis=0)), quantile, axis=0) for group in groups]
        found[:, j] = np.mean(edges, axis=0)
    return found
