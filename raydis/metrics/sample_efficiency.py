"""The metric sample efficiency: how much of its accuracy a classifier reaches with few labels. N codes, F factors.

Definition (Locatello et al., arXiv 1811.12359, section 5.6): for each factor, a classifier is fitted to the codes of
100 labelled images and to those of 10,000. The score is the mean accuracy with few labels divided by the mean accuracy
with many, on 5,000 test rows.

Reconstructed: they use gradient boosting and logistic regression. We use the protocol's estimator, but `hist` instead
of `reference`, which costs thirty times as much (see `raydis.metrics.importance`).

Range: 0 to 1 (a larger quotient, which chance can give, counts 1). A high score alone means little: pure noise needs no
labels to be at chance, and scores nearly 1. Read it together with the accuracies, which are in the result and in the
details of scores. Cost: about that of `dci` with `hist`, and half of it within a suite of metrics with this estimator,
which fits both to the same rows once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from raydis.errors import MetricError
from raydis.metrics.checks import Status, check_table, constant_factors, invalid_reason, varying_factors
from raydis.metrics.importance import Estimator, KnownFits, fit_factors


@dataclass(frozen=True)
class SampleEfficiencyResult:
    """The result of `sample_efficiency`. It has numbers only if `status` is "valid".

    Attributes:
        constant_factors: columns of `factors` that never vary. They are left out.
        score: accuracy with few labels over that with many, at most 1.
        few_accuracy, many_accuracy: both accuracies, mean over factors.
    """

    status: Status
    reason: str | None
    constant_factors: tuple[int, ...]
    score: float | None = None
    few_accuracy: float | None = None
    many_accuracy: float | None = None


def sample_efficiency(
    codes: ArrayLike,
    factors: ArrayLike,
    *,
    rng: np.random.Generator,
    estimator: Estimator = "hist",
    num_few: int = 100,
    num_many: int = 10_000,
    num_test: int = 5_000,
    num_jobs: int = 1,
    known_fits: KnownFits | None = None,
) -> SampleEfficiencyResult:
    """Compute the sample efficiency of codes (M, N) for integer factors (M, F).

    Args:
        rng: draws the rows, with replacement, and one seed per factor. The few rows are the first of the many.
        estimator: the classifier; `hist` is used for `reference`.
        num_few, num_many: labelled rows.
        num_test: rows on which accuracy is measured.
        num_jobs: processes that fit factors in parallel. The result does not depend on it; 1 starts no process.
        known_fits: fits that were made before for the same codes and factors, which are not repeated; those made now
            join them. The result does not depend on it.

    Returns:
        The result, which is invalid and without numbers if codes are not finite or all are constant.

    Raises:
        MetricError: a table that cannot be scored (see `check_table`), or sizes out of range.
    """
    codes, factors = check_table(codes, factors)
    if not 1 <= num_few <= num_many or min(num_test, num_jobs) < 1:
        raise MetricError(f"{num_few=} must lie in 1..{num_many=}, and {num_test=} and {num_jobs=} be at least 1")
    constant, varying = constant_factors(factors), varying_factors(factors)
    if (reason := invalid_reason(codes)) is not None:
        return SampleEfficiencyResult("invalid", reason, constant)
    many, test = (rng.integers(len(codes), size=size) for size in (num_many, num_test))
    seeds = rng.integers(2**31, size=len(factors[0]))[varying]
    served = factors[:, varying]
    quick: Estimator = "hist" if estimator == "reference" else estimator
    accuracies: list[float] = []
    for rows in (many[:num_few], many):
        fits = fit_factors(quick, codes, served, rows, test, seeds, num_jobs=num_jobs, known=known_fits)
        accuracies.append(float(np.mean([fit.accuracy for fit in fits])))
    few, all_labels = accuracies
    score = min(few / all_labels, 1.0) if all_labels > 0 else 0.0
    return SampleEfficiencyResult("valid", None, constant, score, few, all_labels)
