"""Metrics of units that are vectors. M samples, S scalars, G units, F factors.

The metrics of scalars reduce a vector to its first principal component, which is little of a vector that holds several
factors. The functions here see all S scalars of all units, and `groups` says which unit each of them belongs to.

`grouped_dci` fits DCI (see `raydis.metrics.dci`) to all scalars, and adds the importances of the scalars of a unit.
With R (G, F) the sums, disentanglement and completeness follow from R by the same formulas, with G in place of N. For
comparison with methods whose units are scalars, it also returns DCI of the S scalars themselves. A unit that is meant
to hold several factors, such as the content of an image, lowers disentanglement, as it should; completeness says
whether each factor stays within one unit. If every unit has one scalar, both pairs of numbers are those of `dci`.

`leakage` fits classifiers that see one unit only. The skill of unit g for factor j is its accuracy a_gj on rows that
were not trained on, above the share c_j of the most frequent level:

    s_gj = max(a_gj - c_j, 0) / (1 - c_j)
    gap = mean_j (best s_gj - second best s_gj), leakage = mean_j (second best s_gj)

This is the SAP score (Kumar et al., arXiv 1711.00848) with units of any width and a classifier that can follow any
curve. The gap is 1 if one unit alone knows each factor perfectly, and 0 if two units know it equally well or none does.
Leakage is 0 if no second unit knows anything, also where no unit knows anything at all: read it beside the gap.
`informativeness` is the mean accuracy of a classifier that sees all units.

`swap_consistency` asks whether an image that is drawn with a unit of another image is encoded to the units that it was
drawn from. It needs a model, so it is no entry of METRICS: methods whose units are vectors measure it.

Cost of `grouped_dci`: that of DCI with S codes. `leakage` costs about twice DCI by `hist` with S codes, because the
units have S scalars together and one more fit sees all of them; it never uses the reference estimator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raydis.errors import MetricError
from raydis.metrics.checks import Status, check_table, invalid_reason, varying_factors
from raydis.metrics.dci import completeness, dci, disentanglement
from raydis.metrics.importance import Estimator, fit_factor


@dataclass(frozen=True, eq=False)
class GroupedDciResult:
    """The result of `grouped_dci`. It has numbers only if `status` is "valid".

    Attributes:
        disentanglement, completeness: of the units.
        scalar_disentanglement, scalar_completeness: of the S scalars, as `dci` returns them.
        informativeness: mean accuracy of the classifiers of DCI.
        importance: R (G, F), the summed importances.
    """

    status: Status
    reason: str | None
    disentanglement: float | None = None
    completeness: float | None = None
    scalar_disentanglement: float | None = None
    scalar_completeness: float | None = None
    informativeness: float | None = None
    importance: NDArray[np.float64] | None = None


@dataclass(frozen=True, eq=False)
class LeakageResult:
    """The result of `leakage`. It has numbers only if `status` is "valid".

    Attributes:
        gap: how much more the best unit knows about a factor than the second best, from 0 to 1.
        leakage: what the second best unit knows about a factor, from 0 to 1.
        accuracy: (G + 1, F), accuracy of the classifier that sees one unit, and in the last row all units; 1 for
            factors that never vary.
    """

    status: Status
    reason: str | None
    gap: float | None = None
    leakage: float | None = None
    accuracy: NDArray[np.float64] | None = None


def grouped_dci(
    codes: ArrayLike,
    factors: ArrayLike,
    *,
    rng: np.random.Generator,
    estimator: Estimator,
    groups: ArrayLike | None = None,
    num_train: int = 10_000,
    num_test: int = 5_000,
    num_jobs: int = 1,
) -> GroupedDciResult:
    """Compute DCI of units that are vectors.

    Args:
        codes: (M, S), all scalars of all units.
        factors: (M, F), integers.
        rng, estimator, num_train, num_test, num_jobs: see `dci`.
        groups: (S,), the unit of each scalar, from 0 to G - 1; None for one scalar a unit.

    Raises:
        MetricError: see `dci`; or groups of another length, or with a unit without scalars.
    """
    codes, factors = check_table(codes, factors)
    groups = _checked_groups(groups, codes.shape[1])
    found = dci(codes, factors, rng=rng, estimator=estimator, num_train=num_train, num_test=num_test, num_jobs=num_jobs)
    if found.importance is None:
        return GroupedDciResult(found.status, found.reason)
    served = sum_of_groups(found.importance, groups)
    varying = varying_factors(factors)
    return GroupedDciResult(
        status="valid",
        reason=None,
        disentanglement=disentanglement(served[:, varying]),
        completeness=completeness(served[:, varying]),
        scalar_disentanglement=found.disentanglement,
        scalar_completeness=found.completeness,
        informativeness=found.informativeness,
        importance=served,
    )


def leakage(
    codes: ArrayLike,
    factors: ArrayLike,
    *,
    rng: np.random.Generator,
    estimator: Estimator,
    groups: ArrayLike | None = None,
    num_train: int = 10_000,
    num_test: int = 5_000,
) -> LeakageResult:
    """Measure what each unit alone knows about each factor.

    Args:
        codes: (M, S), all scalars of all units.
        factors: (M, F), integers.
        rng: splits the rows, and draws one seed per factor.
        estimator: the classifier; `hist` in place of `reference`, which would take hours.
        groups: (S,), the unit of each scalar, from 0 to G - 1; None for one scalar a unit.
        num_train, num_test: number of rows to fit and to test, at most two thirds and one third of the M rows. No row
            is used for both, because a classifier can recognise a row by a scalar that holds noise.

    Raises:
        MetricError: a table that cannot be scored (see `check_table`), fewer than two units, sizes below 1, or groups
            of another length or with a unit without scalars.
    """
    codes, factors = check_table(codes, factors)
    groups = _checked_groups(groups, codes.shape[1])
    num_groups = int(groups.max()) + 1
    if num_groups < 2:
        raise MetricError("leakage compares units, but there is only one: give the codes of at least two units")
    if min(num_train, num_test) < 1:
        raise MetricError(f"{num_train=} and {num_test=} must each be at least 1")
    reason = invalid_reason(codes)
    if reason is not None:
        return LeakageResult("invalid", reason)
    order: NDArray[np.int64] = rng.permutation(len(codes))
    held = max(min(num_test, len(codes) // 3), 1)
    test, train = order[:held], order[held : held + num_train]
    seeds = rng.integers(2**31, size=len(factors[0]))
    kind: Estimator = "hist" if estimator == "reference" else estimator
    seen = [np.flatnonzero(groups == group) for group in range(num_groups)] + [np.arange(codes.shape[1])]
    accuracy, chance = np.ones((num_groups + 1, factors.shape[1])), np.ones(factors.shape[1])
    varying = varying_factors(factors)
    for j in varying:
        levels = factors[:, j]
        chance[j] = _largest_share(levels[test])
        for row, columns in enumerate(seen):
            table = codes[:, columns]
            fit = fit_factor(kind, (table[train], levels[train]), (table[test], levels[test]), seed=int(seeds[j]))
            accuracy[row, j] = fit.accuracy
    skill = _skill(accuracy[:-1, varying], chance[varying])
    ranked = np.sort(skill, axis=0)  # (G, F), rising
    second = float(ranked[-2].mean())
    return LeakageResult("valid", None, float(ranked[-1].mean()) - second, second, accuracy)


def sum_of_groups(importance: NDArray[np.float64], groups: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return the sums (G, F) of the rows of an importance matrix (S, F) that belong to the same unit."""
    sums = np.zeros((int(groups.max()) + 1, importance.shape[1]))
    np.add.at(sums, groups, importance)
    return sums


def swap_consistency(codes: ArrayLike, expected: ArrayLike) -> NDArray[np.float64]:
    """Return how well the units of drawn images are encoded again: (N,), at most 1.

    The mean squared distance between a unit's vector and the expected one is divided by that between the expected
    vectors of two random images. One minus this ratio is 1 if the encoder finds the units that the image was drawn
    from, and about 0 if the result is no closer than the units of a random image. It can be negative. A unit whose
    expected vectors are all equal gets 1 if it is found exactly, and 0 otherwise.

    Args:
        codes: (M, N, D), codes of the drawn images, encoded again.
        expected: (M, N, D), the codes that these images were drawn from.

    Raises:
        MetricError: fewer than two images, or arrays of other or unequal shapes.
    """
    codes, expected = np.asarray(codes, np.float64), np.asarray(expected, np.float64)
    if codes.ndim != 3 or codes.shape != expected.shape or len(codes) < 2:
        raise MetricError(
            f"found {codes.shape} and expected {expected.shape} must both be codes (M, N, D) of two images or more"
        )
    error = np.square(codes - expected).sum(axis=2).mean(axis=0)
    # The mean over ordered pairs of different images, sum_ij |x_i - x_j|^2 / (M (M - 1)), is twice the variance.
    apart = 2.0 * expected.var(axis=0, ddof=1).sum(axis=1)
    found: NDArray[np.float64] = np.ones(len(apart))
    found[error > 0] = 0.0
    varying = np.flatnonzero(apart)
    found[varying] = 1.0 - error[varying] / apart[varying]
    return found


def _largest_share(levels: NDArray[np.int64]) -> float:
    """Return the share of the most frequent level (M,)."""
    return float(np.unique(levels, return_counts=True)[1].max()) / len(levels)


def _skill(accuracy: NDArray[np.float64], chance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the skill of accuracies (G, F) above the shares (F,) of the most frequent levels."""
    rest = np.maximum(1.0 - chance, np.finfo(np.float64).tiny)  # 0 if all tested rows have one level
    return np.maximum(accuracy - chance, 0.0) / rest


def _checked_groups(groups: ArrayLike | None, num_scalars: int) -> NDArray[np.intp]:
    """Return the unit of each scalar (S,). Raises MetricError if they do not fit S scalars."""
    if groups is None:
        return np.arange(num_scalars)
    found: NDArray[Any] = np.asarray(groups)
    if found.shape != (num_scalars,) or found.dtype.kind not in "iu":
        raise MetricError(
            f"groups of shape {found.shape} and type {found.dtype} do not fit {num_scalars} columns of codes: give the "
            "integer number of the unit of each column"
        )
    named = sorted(set(found.tolist()))
    if named != list(range(len(named))):
        raise MetricError(f"groups name the units {named}: number them from 0 without a gap")
    return found.astype(np.intp)
