"""The metric SAP: how much better the best code alone predicts a factor than the second best. N codes, F factors.

Definition (separated attribute predictability, Kumar et al., arXiv 1711.00848; formulas and sizes as in
disentanglement_lib's sap_score.py). S (N, F) holds how well code i alone predicts factor j. The score is the mean over
factors of the largest minus the second largest entry of S_.j. S comes in two kinds:

- `sap`: test accuracy of a linear support vector classifier (C = 0.01, balanced classes). This is the published kind.
- `sap_continuous`: squared correlation of code and factor; 0 for a code with a variance of at most 1e-12. It takes the
  index of a level as its value, so it suits factors whose levels are in order.

Range: 0 to 1. One linear classifier cannot separate many ordered levels on a line, so perfect codes have a `sap` of
about 0.2 for factors of ten levels. Compare it only with itself, on the same factors. Redundant codes lower it, codes
that no factor needs do not matter, and a code that does not follow the order of levels scores low. Cost with 10 codes
and 6 factors, in CPU-seconds: 0.5 (`sap`), below 0.05 (`sap_continuous`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raydis.errors import MetricError
from raydis.metrics.checks import Status, check_table, constant_factors, invalid_reason, varying_factors
from raydis.metrics.probes import fit_linear_svc, one_thread

_LEAST_VARIANCE = 1e-12  # as in disentanglement_lib


@dataclass(frozen=True, eq=False)
class SapResult:
    """The result of `sap` or `sap_continuous`. It has numbers only if `status` is "valid".

    Attributes:
        constant_factors: columns of `factors` that never vary. They are left out.
        score: mean gap over the varying factors.
        predictability: S (N, F), with 0 in the columns of constant factors.
    """

    status: Status
    reason: str | None
    constant_factors: tuple[int, ...]
    score: float | None = None
    predictability: NDArray[np.float64] | None = None


def sap(
    codes: ArrayLike, factors: ArrayLike, *, rng: np.random.Generator, num_train: int = 10_000, num_test: int = 5_000
) -> SapResult:
    """Compute SAP with support vector classifiers, of codes (M, N) and integer factors (M, F).

    Args:
        rng: draws the training and the test rows, independently and with replacement.
        num_train: rows to which the classifiers are fitted.
        num_test: rows on which their accuracy is measured.

    Returns:
        The result, which is invalid and without numbers if codes are not finite or all are constant.

    Raises:
        MetricError: a table that cannot be scored (see `check_table`), fewer than two units, or sizes below 1.
    """
    codes, factors = _check("sap", codes, factors, min(num_train, num_test))
    constant, varying = constant_factors(factors), varying_factors(factors)
    if (reason := invalid_reason(codes)) is not None:
        return SapResult("invalid", reason, constant)
    train, test = (rng.integers(len(codes), size=size) for size in (num_train, num_test))
    with one_thread():
        found = svc_accuracies((codes[train], factors[train][:, varying]), (codes[test], factors[test][:, varying]))
    return _result(found, factors.shape[1], constant, varying)


def sap_continuous(
    codes: ArrayLike, factors: ArrayLike, *, rng: np.random.Generator, num_samples: int = 10_000
) -> SapResult:
    """Compute SAP with squared correlations, of codes (M, N) and integer factors (M, F).

    Args:
        rng: draws the rows, with replacement.
        num_samples: number of rows.

    Returns:
        The result, which is invalid and without numbers if codes are not finite or all are constant.

    Raises:
        MetricError: a table that cannot be scored (see `check_table`), fewer than two units, or fewer than two samples.
    """
    codes, factors = _check("sap_continuous", codes, factors, num_samples - 1)
    constant, varying = constant_factors(factors), varying_factors(factors)
    if (reason := invalid_reason(codes)) is not None:
        return SapResult("invalid", reason, constant)
    rows = rng.integers(len(codes), size=num_samples)
    return _result(squared_correlations(codes[rows], factors[rows][:, varying]), factors.shape[1], constant, varying)


def _check(
    name: str, codes: ArrayLike, factors: ArrayLike, smallest_size: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    codes, factors = check_table(codes, factors)
    if codes.shape[1] < 2:
        raise MetricError(f"{name} compares the best unit with the second best: give the codes of at least two units")
    if smallest_size < 1:
        raise MetricError(
            f"{name} needs at least one row to fit and one to test, and two to correlate: raise the sizes"
        )
    return codes, factors


def _result(
    found: NDArray[np.float64], num_factors: int, constant: tuple[int, ...], varying: NDArray[np.intp]
) -> SapResult:
    predictability = np.zeros((len(found), num_factors))
    predictability[:, varying] = found
    return SapResult("valid", None, constant, mean_gap(found), predictability)


def svc_accuracies(
    train: tuple[NDArray[np.float64], NDArray[np.int64]], test: tuple[NDArray[np.float64], NDArray[np.int64]]
) -> NDArray[np.float64]:
    """Return the test accuracy (N, F) of a classifier for each pair of a code and a factor.

    Args:
        train, test: codes (M, N) and factors (M, F). A factor with one level in the training rows is predicted always.
    """
    (train_codes, train_factors), (test_codes, test_factors) = train, test
    found = np.empty((train_codes.shape[1], train_factors.shape[1]))
    for j in range(found.shape[1]):
        levels, expected = train_factors[:, j], test_factors[:, j]
        if (levels == levels[0]).all():
            found[:, j] = (expected == levels[0]).mean()
            continue
        for i in range(len(found)):
            model = fit_linear_svc(train_codes[:, [i]], levels)
            found[i, j] = (model.predict(test_codes[:, [i]]) == expected).mean()
    return found


def squared_correlations(codes: NDArray[np.float64], factors: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the squared correlation (N, F) of codes (M, N) with factors (M, F); 0 where one of them is constant."""
    left, right = codes - codes.mean(axis=0), factors - factors.mean(axis=0)
    covariance = left.T @ right / (len(codes) - 1)
    variances = codes.var(axis=0, ddof=1)[:, None], factors.var(axis=0, ddof=1)[None]
    known = (variances[0] > _LEAST_VARIANCE) & (variances[1] > 0)
    squared = np.divide(covariance**2, variances[0] * variances[1], out=np.zeros_like(covariance), where=known)
    return np.minimum(squared, 1.0)


def mean_gap(predictability: NDArray[np.float64]) -> float:
    """Return the mean over columns of the largest minus the second largest entry of a matrix (N, F)."""
    second, best = np.sort(predictability, axis=0)[-2:]
    return float((best - second).mean())
