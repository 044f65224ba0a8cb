"""The metric mean correlation coefficient (MCC): how well one unit for each factor is a linear function of it.

M samples, N units, F factors. The definition is that of Hyvarinen and Morioka (NeurIPS 2016, arXiv 1605.06336) for
nonlinear independent component analysis, which Horan et al. (NeurIPS 2021) use as well: every factor is given a unit of
its own so that the sum of the absolute correlations is largest (the Hungarian algorithm), and MCC is their mean. All
rows are used, so nothing depends on chance. The cost is one product of matrices, N F M.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raydis.errors import MetricError
from raydis.metrics.checks import Status, check_codes, check_shape, invalid_reason

Correlation = Literal["pearson", "spearman"]


@dataclass(frozen=True)
class MccResult:
    """The result of `mcc`. Its numbers are None unless the status is "valid".

    Attributes:
        status, reason: "invalid" and the reason if the codes cannot be scored.
        score: mean over the varying factors, in [0, 1].
        correlations: (N, F), absolute correlation of each unit and factor; 0 where one of them is constant.
        units: the unit of each factor; -1 for a constant factor, or if there are fewer units than factors.
    """

    status: Status
    reason: str | None
    score: float | None = None
    correlations: NDArray[np.float64] | None = None
    units: tuple[int, ...] = ()


def mcc(
    codes: ArrayLike,
    factors: ArrayLike,
    *,
    rng: np.random.Generator | None = None,
    correlation: Correlation = "pearson",
) -> MccResult:
    """Compute the mean correlation coefficient of codes (M, N) and factors (M, F), which may be real numbers or levels.

    It is 1 if each factor has a unit that is a linear function of it, with either sign. A factor without a unit of its
    own counts as 0, and further units have no effect. The score is low, although the units are disentangled, for a
    factor with an arbitrary order of its levels (a category), for a periodic factor, and for a unit that rises and
    falls with its factor. It is high, although they are not, if factors correlate in the data. A unit that is a
    nonlinear but monotone function loses little by Pearson's correlation and nothing by Spearman's.

    Args:
        rng: not used; every metric takes one.
        correlation: `pearson`, as published, or `spearman`, which correlates ranks.

    Returns:
        The result, which is invalid and without numbers if codes are not finite or all are constant.

    Raises:
        MetricError: tables of other shapes or unequal lengths, fewer than two rows, values that are not numbers,
            factors that are not finite, or no factor that varies.
    """
    codes, factors = _tables(codes, factors)
    reason = invalid_reason(codes)
    if reason is not None:
        return MccResult("invalid", reason)
    correlations = np.abs(_standardised(codes, correlation).T @ _standardised(factors, correlation)).clip(0.0, 1.0)
    from scipy import optimize as stubless  # pyright: ignore[reportMissingTypeStubs]  (SciPy has no types)

    optimize: Any = stubless
    found = optimize.linear_sum_assignment(-correlations)
    matched = np.zeros(factors.shape[1])
    units = np.full(factors.shape[1], -1)
    units[found[1]], matched[found[1]] = found[0], correlations[found]
    varying = (factors != factors[0]).any(axis=0)
    units[~varying] = -1
    return MccResult("valid", None, float(matched[varying].mean()), correlations, tuple(units.tolist()))


def _tables(codes: ArrayLike, factors: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    codes, factors = check_codes(codes), np.asarray(factors)
    check_shape("factors", factors)
    if factors.dtype.kind not in "fiub":
        raise MetricError(f"factors of type {factors.dtype} are not real numbers: give an array of floats or integers")
    if len(codes) != len(factors):
        raise MetricError(f"{len(codes)} rows of codes but {len(factors)} of factors: row i of both must be one sample")
    factors = factors.astype(np.float64)  # now, because large integers may become equal
    if not np.isfinite(factors).all():
        raise MetricError("factors hold NaN or infinity: leave the rows out whose factors are not known")
    if not (factors != factors[0]).any():
        raise MetricError(f"0 of {factors.shape[1]} factors vary in these {len(factors)} rows: score more of the data")
    return codes, factors


def _standardised(values: NDArray[np.float64], correlation: Correlation) -> NDArray[np.float64]:
    """Return columns of mean 0 and norm 1, so that their products are correlations; 0 for a constant column."""
    if correlation == "spearman":
        from scipy import stats as stubless  # pyright: ignore[reportMissingTypeStubs]  (SciPy has no types)

        stats: Any = stubless
        values = stats.rankdata(values, axis=0)
    constant = (values == values[0]).all(axis=0)
    centred = np.where(constant, 0.0, values - values.mean(axis=0))  # a mean is not exactly that of a constant column
    centred /= np.where(constant, 1.0, np.abs(centred).max(axis=0))  # or the squares of tiny values would be 0
    return centred / np.where(constant, 1.0, np.linalg.norm(centred, axis=0))
