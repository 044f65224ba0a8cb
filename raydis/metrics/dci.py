"""The metric DCI: disentanglement, completeness and informativeness. M samples, N codes, F factors.

Definition (Eastwood and Williams 2018; formulas and sizes as in disentanglement_lib's dci.py). One classifier for each
factor predicts it from all codes, which gives R (N, F), the importance of code i for factor j. With H_b the entropy to
base b of a normalised row or column:

    D_i = 1 - H_F(R_i.), D = sum_i D_i sum_j R_ij / sum R      1 if code i is important for one factor only
    C_j = 1 - H_N(R_.j), C = sum_j C_j sum_i R_ij / sum R      1 if only one code is important for factor j
    I   = mean accuracy of the classifiers

"DCI" in the tables of DisDiff, EncDiff and DyGA+SD is D of the `reference` estimator with 10,000 training and 5,000
test samples.

Range: D and C lie in [0, 1], I in (0, 1]. Values depend on the estimator and the sample sizes, so only values with the
same ones can be compared. Unused codes have no weight in D. Redundant codes lower C, as intended. Trees can follow any
one-to-one map of a code, so the order of a factor's levels in a code does not matter, but a rotation of codes does.
Cost with 10 codes and 57 levels in total, in CPU-seconds: 130 or more (reference), 5 to 15 (hist), below 1 (tree).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raydis.errors import MetricError
from raydis.metrics.checks import Status, check_table, constant_factors, invalid_reason, varying_factors
from raydis.metrics.importance import Estimator, KnownFits, fit_factors


@dataclass(frozen=True, eq=False)
class DciResult:
    """The result of `dci`. It has numbers only if `status` is "valid".

    Attributes:
        constant_factors: columns of `factors` that never vary. D, C and I ignore them.
        informativeness: mean accuracy on the test rows, over the factors that vary.
        importance: R (N, F), with 0 in the columns of constant factors.
        per_unit_disentanglement: D_i, (N,).
        per_factor_completeness: C_j, (F,); 0 for constant factors.
    """

    status: Status
    reason: str | None
    estimator: Estimator
    num_train: int
    num_test: int
    constant_factors: tuple[int, ...]
    disentanglement: float | None = None
    completeness: float | None = None
    informativeness: float | None = None
    importance: NDArray[np.float64] | None = None
    per_unit_disentanglement: NDArray[np.float64] | None = None
    per_factor_completeness: NDArray[np.float64] | None = None


def dci(
    codes: ArrayLike,
    factors: ArrayLike,
    *,
    rng: np.random.Generator,
    estimator: Estimator,
    num_train: int = 10_000,
    num_test: int = 5_000,
    num_jobs: int = 1,
    known_fits: KnownFits | None = None,
) -> DciResult:
    """Compute DCI of a table of codes (M, N) and integer factors (M, F).

    Args:
        rng: draws the training and the test rows, independently and with replacement, and one seed per factor.
        estimator: the classifier, see `raydis.metrics.importance`.
        num_train: number of rows to which the classifiers are fitted.
        num_test: number of rows for `informativeness`. They may repeat training rows, as published.
        num_jobs: processes that fit factors in parallel. The result does not depend on it; 1 starts no process.
        known_fits: fits that were made before for the same codes and factors, which are not repeated; those made now
            join them. The result does not depend on it.

    Returns:
        The result, which is invalid and without numbers if codes are not finite or all are constant.

    Raises:
        MetricError: a table that cannot be scored (see `check_table`), or an argument out of range.
    """
    codes, factors = check_table(codes, factors)
    if min(num_train, num_test, num_jobs) < 1:
        raise MetricError(f"{num_train=}, {num_test=} and {num_jobs=} must each be at least 1")
    varying = varying_factors(factors)
    reason = invalid_reason(codes)
    if reason is not None:
        return DciResult("invalid", reason, estimator, num_train, num_test, constant_factors(factors))

    train, test = (rng.integers(len(codes), size=size) for size in (num_train, num_test))
    seeds = rng.integers(2**31, size=len(factors[0]))
    fits = fit_factors(
        estimator, codes, factors[:, varying], train, test, seeds[varying], num_jobs=num_jobs, known=known_fits
    )
    served = np.stack([fit.importance for fit in fits], axis=1)  # (N, varying factors)
    importance = np.zeros((codes.shape[1], factors.shape[1]))
    importance[:, varying] = served
    factor_completeness = np.zeros(factors.shape[1])
    factor_completeness[varying] = per_factor_completeness(served)
    return DciResult(
        status="valid",
        reason=None,
        estimator=estimator,
        num_train=num_train,
        num_test=num_test,
        constant_factors=constant_factors(factors),
        disentanglement=disentanglement(served),
        completeness=completeness(served),
        informativeness=float(np.mean([fit.accuracy for fit in fits])),
        importance=importance,
        per_unit_disentanglement=per_unit_disentanglement(served),
        per_factor_completeness=factor_completeness,
    )


def disentanglement(importance: ArrayLike) -> float:
    """Return D of a non-negative importance matrix (N, F).

    It is 1 if every code is important for one factor only, and 0 if every code is equally important for all factors.
    """
    importance = np.asarray(importance, np.float64)
    return _weighted_mean(per_unit_disentanglement(importance), importance.sum(axis=1))


def completeness(importance: ArrayLike) -> float:
    """Return C of a non-negative importance matrix (N, F). It is 1 if one code only is important for each factor."""
    importance = np.asarray(importance, np.float64)
    return _weighted_mean(per_factor_completeness(importance), importance.sum(axis=0))


def per_unit_disentanglement(importance: ArrayLike) -> NDArray[np.float64]:
    """Return D_i of each row of an importance matrix (N, F): (N,)."""
    return 1.0 - _normalised_entropy(np.asarray(importance, np.float64))


def per_factor_completeness(importance: ArrayLike) -> NDArray[np.float64]:
    """Return C_j of each column of an importance matrix (N, F): (F,)."""
    return 1.0 - _normalised_entropy(np.asarray(importance, np.float64).T)


def _normalised_entropy(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the entropy of each row, normalised to a distribution, to the base of its length; 0 for rows of one entry.

    As in disentanglement_lib, 1e-11 is added, which makes a row of zeros uniform, with entropy 1.
    """
    if rows.shape[1] == 1:
        return np.zeros(len(rows))
    share = rows + 1e-11
    share /= share.sum(axis=1, keepdims=True)
    return -(share * np.log(share)).sum(axis=1) / np.log(rows.shape[1])


def _weighted_mean(values: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    """Return the weighted mean; the plain mean if all weights are 0."""
    return float(np.average(values, weights=weights if weights.sum() > 0 else None))
