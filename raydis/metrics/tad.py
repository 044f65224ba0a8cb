"""The metric TAD: how much better the best code tells a binary attribute than the second best. N codes, F attributes.

Definition (total AUROC difference, Yeats et al. 2022, for the 40 attributes of CelebA; the procedure is that of the
evaluations of DisDiff, EncDiff and DyGA+SD). Area A_ia is that under the ROC curve of code i for attribute a, in the
better of both directions. Attribute a is captured if its largest A_ia is at least 0.75, and if no other attribute holds
more than 0.2 of its entropy. TAD is the sum over captured attributes of the largest minus the second largest A_ia.

As published, the curve has 11 points, at thresholds from the smallest to the largest value of the code, whose rates are
sorted, with rectangles as high as their right end. A code with a range of at most 0.2, in raw values, has 0.5 for all
attributes. Reconstructed: a sample at the threshold counts as positive.

Those rectangles give about 0.6 instead of 0.5 to a code of noise, so a single spare unit lowers the score.

Range: 0 to half the number of attributes, which is 20 for those of CelebA. Redundant codes bring an attribute's share
to 0. TAD of different samples and numbers of attributes cannot be compared. Cost: below a CPU-second at 10,000 rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raydis.errors import MetricError
from raydis.metrics.checks import Status, check_table, constant_factors, invalid_reason, varying_factors

MAX_ATTRIBUTES = 40  # those of CelebA, on which the range of the number rests
LEAST_AREA = 0.75
LARGEST_SHARE = 0.2  # of an attribute's entropy, in another attribute
LEAST_RANGE = 0.2  # of a code, in raw values
NUM_THRESHOLDS = 11


@dataclass(frozen=True, eq=False)
class TadResult:
    """The result of `tad`. It has numbers only if `status` is "valid".

    Attributes:
        constant_factors: attributes that never vary. They are left out.
        score: TAD.
        num_captured: number of captured attributes.
        areas: (N, F), with 0.5 in the columns of constant attributes.
    """

    status: Status
    reason: str | None
    constant_factors: tuple[int, ...]
    score: float | None = None
    num_captured: int | None = None
    areas: NDArray[np.float64] | None = None


def tad(codes: ArrayLike, factors: ArrayLike, *, rng: np.random.Generator, num_samples: int = 10_000) -> TadResult:
    """Compute TAD of codes (M, N) and binary attributes (M, F).

    Args:
        factors: at most 40 columns, each with at most two values. The larger one is the attribute's presence.
        rng: draws the rows without replacement, if there are more than `num_samples`.
        num_samples: number of rows.

    Returns:
        The result, which is invalid and without numbers if codes are not finite or all are constant, or if no
        attribute varies in the rows drawn.

    Raises:
        MetricError: a table that cannot be scored (see `check_table`), attributes that are not binary or more than 40,
            fewer than two units, or fewer than two samples.
    """
    codes, factors = check_table(codes, factors)
    check_binary(factors)
    if codes.shape[1] < 2:
        raise MetricError("tad compares the best unit with the second best: give the codes of at least two units")
    if num_samples < 2:
        raise MetricError(f"{num_samples=} must be at least 2")
    constant = constant_factors(factors)
    if (reason := invalid_reason(codes)) is not None:
        return TadResult("invalid", reason, constant)
    rows = np.arange(len(codes)) if len(codes) <= num_samples else rng.permutation(len(codes))[:num_samples]
    present = factors[rows] == factors.max(axis=0)
    varying = np.array([j for j in varying_factors(factors) if present[:, j].any() and not present[:, j].all()], int)
    if not len(varying):
        return TadResult("invalid", "no attribute varies in the rows that were drawn: raise num_samples", constant)
    areas = np.full((codes.shape[1], factors.shape[1]), 0.5)
    areas[:, varying] = best_areas(codes[rows], present[:, varying])
    second, best = np.sort(areas[:, varying], axis=0)[-2:]
    captured = (best >= LEAST_AREA) & (shared_entropy(present[:, varying]) <= LARGEST_SHARE)
    score = float((best - second)[captured].sum())
    return TadResult("valid", None, constant, score, int(captured.sum()), areas)


def check_binary(factors: NDArray[np.int64]) -> None:
    """Raise MetricError if (M, F) are not at most 40 columns with at most two values each."""
    if factors.shape[1] > MAX_ATTRIBUTES:
        raise MetricError(f"tad is of at most {MAX_ATTRIBUTES} attributes, found {factors.shape[1]}: leave some out")
    middle = (factors != factors.min(axis=0)) & (factors != factors.max(axis=0))
    if len(wide := np.flatnonzero(middle.any(axis=0))):
        raise MetricError(f"tad is of binary attributes, but factors {wide.tolist()} have more than two values")


def best_areas(codes: NDArray[np.float64], present: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the published area (N, F) of each code (M, N) for each attribute (M, F), in the better direction.

    Every attribute must be present in some rows and absent in others.
    """
    found = np.full((codes.shape[1], present.shape[1]), 0.5)
    totals = np.stack([(~present).sum(axis=0), present.sum(axis=0)])[:, None]  # (2, 1, F)
    sides = np.concatenate([~present, present], axis=1).astype(np.float64)  # (M, 2 F)
    for i, column in enumerate(codes.T):
        low, high = float(column.min()), float(column.max())
        if high - low <= LEAST_RANGE:
            continue
        thresholds = np.linspace(low, high, NUM_THRESHOLDS)[:, None]
        for positive in (column >= thresholds, column <= thresholds):  # (thresholds, M)
            counts = (positive.astype(np.float64) @ sides).reshape(NUM_THRESHOLDS, 2, -1).transpose(1, 0, 2)
            false_rate, true_rate = np.sort(counts / totals, axis=1)
            area = (true_rate[1:] * np.diff(false_rate, axis=0)).sum(axis=0)
            found[i] = np.maximum(found[i], area)
    return np.minimum(found, 1.0)


def shared_entropy(present: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the largest share of each attribute's entropy (M, F) that another attribute holds: (F,), in [0, 1]."""
    number, one = len(present), present.astype(np.float64)
    both = one.T @ one / number  # (F, F), share of rows with both attributes
    rate = one.mean(axis=0)
    cells = (both, rate[:, None] - both, rate[None] - both, 1 - rate[:, None] - rate[None] + both)
    margins = [(x, y) for x in (rate, 1 - rate) for y in (rate, 1 - rate)]
    information = np.zeros_like(both)
    for joint, (x, y) in zip(cells, margins, strict=True):
        seen = joint > 0.5 / number  # a cell holds a whole number of rows
        expected = np.outer(x, y)
        information[seen] += joint[seen] * np.log(joint[seen] / expected[seen])
    entropy = information.diagonal().copy()
    np.fill_diagonal(information, 0.0)
    return np.clip(information.max(axis=1) / entropy, 0.0, 1.0)
