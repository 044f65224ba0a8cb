"""The metric BetaVAE score. M samples, N codes, F factors.

Definition (Higgins et al. 2017; procedure and sizes as in disentanglement_lib's beta_vae.py). A point is made of 64
pairs of samples. Both samples of a pair have the same level of one factor, which is the same factor for all 64 pairs.
Its features are the mean absolute differences of each code within the pairs, and its label is the factor. The score is
the accuracy, on new points, of a logistic regression from features to labels.

Range: 1/F (chance) to 1. The score saturates even sooner than the FactorVAE score: it only asks whether a linear map of
the differences tells which factor was fixed, so codes that are linear mixtures of the factors reach 1 as well. Codes
are not scaled. If their scale is very small, the regression's penalty keeps it near chance. Cost: about a CPU-second at
the published sizes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raydis.errors import MetricError
from raydis.metrics.checks import Status, check_table, constant_factors, invalid_reason
from raydis.metrics.probes import fit_logistic, one_thread
from raydis.metrics.sampling import LevelIndex

_CHUNK_ELEMENTS = 1 << 17  # 1 MiB of float64, which stays in the cache


@dataclass(frozen=True, eq=False)
class BetaVaeResult:
    """The result of `beta_vae`. It has numbers only if `status` is "valid".

    Attributes:
        constant_factors: columns of `factors` that never vary. They are never the fixed factor.
        score: accuracy on new points, which is the published number.
        train_accuracy: accuracy on the points to which the regression was fitted.
    """

    status: Status
    reason: str | None
    constant_factors: tuple[int, ...]
    score: float | None = None
    train_accuracy: float | None = None


def beta_vae(
    codes: ArrayLike,
    factors: ArrayLike,
    *,
    rng: np.random.Generator,
    batch_size: int = 64,
    num_train: int = 10_000,
    num_eval: int = 5_000,
    index: LevelIndex | None = None,
) -> BetaVaeResult:
    """Compute the BetaVAE score of codes (M, N) and integer factors (M, F), a full grid or a part of one.

    Args:
        rng: draws all samples, with replacement from the given rows.
        batch_size: pairs per point.
        num_train: points to which the regression is fitted.
        num_eval: points that score it.
        index: `LevelIndex.of(factors)`, if it is known already.

    Returns:
        The result, which is invalid and without numbers if codes are not finite or all are constant.

    Raises:
        MetricError: a table that cannot be scored (see `check_table`), or sizes below 1.
    """
    codes, factors = check_table(codes, factors)
    if min(batch_size, num_train, num_eval) < 1:
        raise MetricError(f"{batch_size=}, {num_train=} and {num_eval=} must each be at least 1")
    constant = constant_factors(factors)
    if (reason := invalid_reason(codes)) is not None:
        return BetaVaeResult("invalid", reason, constant)
    index = LevelIndex.of(factors) if index is None else index
    points: list[tuple[NDArray[np.float64], NDArray[np.int64]]] = []
    for number in (num_train, num_eval):
        fixed, first, second = index.draw_pairs(rng, num_batches=number, batch_size=batch_size)
        points.append((mean_differences(codes, first, second), fixed))
    (features, labels), (new, expected) = points
    if (labels == labels[0]).all():
        reason = f"all of the {num_train} points that were drawn fix one factor: raise num_train"
        return BetaVaeResult("invalid", reason, constant)
    with one_thread():
        model = fit_logistic(features, labels)
        accuracies = [float(model.score(*each)) for each in ((new, expected), (features, labels))]
    return BetaVaeResult("valid", None, constant, *accuracies)


def mean_differences(
    codes: NDArray[np.float64], first: NDArray[np.integer], second: NDArray[np.integer]
) -> NDArray[np.float64]:
    """Return the mean absolute difference of codes (M, N) over the pairs of each point.

    Args:
        first, second: (num_points, batch_size), rows of codes.

    Returns:
        (num_points, N).
    """
    found = np.empty((len(first), codes.shape[1]))
    size = max(1, _CHUNK_ELEMENTS // (first.shape[1] * codes.shape[1]))
    for start in range(0, len(first), size):
        part = slice(start, start + size)
        found[part] = np.abs(codes[first[part]] - codes[second[part]]).mean(axis=1)
    return found
