"""The metric MED: disentanglement and completeness as in DCI, from mutual information instead of trees.

N codes, F factors. Definition (Cao et al. 2022, arXiv 2206.01003, as in the released code of DyGA+SD): the importance
of code i for factor j is their mutual information, with codes in 20 bins of equal width, divided by its sum over the
codes. Disentanglement and completeness are those of DCI for this matrix. Informativeness is the mean test accuracy of a
logistic regression for each factor. As in `raydis.metrics.dci`, sizes are 10,000 rows to fit and 5,000 to test; their
code leaves them to the caller.

Range: 0 to 1. No tree is fitted, so it is a cheap check of DCI that has no seed of its own. In contrast to boosting,
mutual information looks at one code at a time: it does not see what two codes tell only together, and gives every
redundant code its full share. Informativeness is linear: folded codes lower it. Cost: below a CPU-second.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raydis.errors import MetricError
from raydis.metrics.checks import Status, check_table, constant_factors, invalid_reason, varying_factors
from raydis.metrics.dci import completeness, disentanglement
from raydis.metrics.mig import information_matrix
from raydis.metrics.probes import fit_logistic, one_thread, standardise


@dataclass(frozen=True, eq=False)
class MedResult:
    """The result of `med`. It has numbers only if `status` is "valid".

    Attributes:
        constant_factors: columns of `factors` that never vary. They are left out.
        disentanglement, completeness, informativeness: see above.
        importance: (N, F), with columns of sum 1, or of 0 for constant factors.
    """

    status: Status
    reason: str | None
    constant_factors: tuple[int, ...]
    disentanglement: float | None = None
    completeness: float | None = None
    informativeness: float | None = None
    importance: NDArray[np.float64] | None = None


def med(
    codes: ArrayLike,
    factors: ArrayLike,
    *,
    rng: np.random.Generator,
    num_train: int = 10_000,
    num_test: int = 5_000,
    num_bins: int = 20,
) -> MedResult:
    """Compute MED of codes (M, N) and integer factors (M, F).

    Args:
        rng: draws the training and the test rows, independently and with replacement.
        num_train: rows for the mutual information and the regressions.
        num_test: rows for informativeness.
        num_bins: bins of each code.

    Returns:
        The result, which is invalid and without numbers if codes are not finite or all are constant.

    Raises:
        MetricError: a table that cannot be scored (see `check_table`), or sizes out of range.
    """
    codes, factors = check_table(codes, factors)
    if min(num_train, num_test, num_bins) < 2:
        raise MetricError(f"{num_train=}, {num_test=} and {num_bins=} must each be at least 2")
    constant, varying = constant_factors(factors), varying_factors(factors)
    if (reason := invalid_reason(codes)) is not None:
        return MedResult("invalid", reason, constant)
    train, test = (rng.integers(len(codes), size=size) for size in (num_train, num_test))
    information, _ = information_matrix(codes[train], factors[train][:, varying], num_bins)
    shares = information / np.maximum(information.sum(axis=0), np.finfo(np.float64).tiny)
    importance = np.zeros((codes.shape[1], factors.shape[1]))
    importance[:, varying] = shares
    scaled = [standardise(codes[rows], codes[train]) for rows in (train, test)]
    accuracies: list[float] = []
    with one_thread():
        for j in varying:
            levels, expected = factors[train, j], factors[test, j]
            if (levels == levels[0]).all():
                accuracies.append(float((expected == levels[0]).mean()))
            else:
                accuracies.append(float(fit_logistic(scaled[0], levels).score(scaled[1], expected)))
    return MedResult(
        "valid",
        None,
        constant,
        disentanglement(shares),
        completeness(shares),
        float(np.mean(accuracies)),
        importance,
    )
