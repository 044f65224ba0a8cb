"""Compare two methods by their scores over the same training seeds: paired tests, and Holm's correction.

A score of a trained method varies with the seed of its training. Runs of two methods with the same seed make a pair,
and a test asks whether the mean difference of the pairs could be chance. Two tests are offered, because a study of
disentanglement can rarely afford more than a few seeds:

- Student's paired t test takes the differences as independent and normally distributed. Few pairs can then show a large
  difference, but they cannot show that this assumption holds.
- The exact sign-flip test (Fisher's randomisation test for pairs) only takes the differences as symmetric about zero if
  the methods are equal. Its p value cannot be smaller than 2^(1 - n) for n pairs, so that fewer than six pairs never
  reach 0.05, however large the difference is.

Holm's correction (Scandinavian Journal of Statistics 6, 1979) bounds by `level` the probability that any of several
tests finds a difference where there is none, whatever the tests have to do with each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raydis.errors import MetricError

LEVEL = 0.05
MAX_PAIRS = 20  # the exact test sums up 2^(n - 1) assignments of signs
ROUNDING = 1e-12  # relative; differences within it count as equal


@dataclass(frozen=True)
class PairedTest:
    """The comparison of two methods over n pairs of runs.

    Attributes:
        num_pairs: n.
        difference: mean of first - second.
        spread: sample standard deviation of the differences.
        low, high: 95 % confidence interval of the mean difference by Student's t, not corrected for other tests.
        t_p_value: two-sided p value of the paired t test; None if all differences are equal, as t is undefined then.
        exact_p_value: two-sided p value of the exact sign-flip test, at least `smallest_exact_p_value(n)`.
    """

    num_pairs: int
    difference: float
    spread: float
    low: float
    high: float
    t_p_value: float | None
    exact_p_value: float


def paired_test(first: ArrayLike, second: ArrayLike) -> PairedTest:
    """Compare two methods by their scores over the same seeds.

    Args:
        first, second: n scores each, with 2 <= n <= MAX_PAIRS; equal positions have equal seeds.

    Raises:
        MetricError: unequal lengths, too few or too many pairs, or scores that are not finite.
    """
    scores = _pairs(first, second)
    differences = scores[0] - scores[1]
    n, mean = len(differences), float(differences.mean())
    spread = float(differences.std(ddof=1))
    if spread <= ROUNDING * float(np.abs(scores).max()):
        equal = abs(mean) <= ROUNDING * float(np.abs(scores).max())
        return PairedTest(n, mean, 0.0, mean, mean, 1.0 if equal else None, 1.0 if equal else smallest_exact_p_value(n))
    from scipy.special import stdtr, stdtrit  # pyright: ignore[reportMissingTypeStubs]  (SciPy has no types)

    error = spread / math.sqrt(n)
    reach = float(stdtrit(n - 1, 1.0 - LEVEL / 2.0)) * error
    return PairedTest(
        num_pairs=n,
        difference=mean,
        spread=spread,
        low=mean - reach,
        high=mean + reach,
        t_p_value=2.0 * float(stdtr(n - 1, -abs(mean) / error)),
        exact_p_value=_sign_flip_p_value(differences),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values corrected for their number by Holm's step-down procedure, in the order of the input.

    A test is significant at a level if its corrected value is at most that level.

    Args:
        p_values: in [0, 1], one for each test.

    Raises:
        MetricError: a value is outside of [0, 1] or NaN.
    """
    if wrong := [value for value in p_values if not 0.0 <= value <= 1.0]:
        raise MetricError(f"{wrong[0]} is not a p value: it must lie in [0, 1]")
    corrected, largest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def smallest_exact_p_value(num_pairs: int) -> float:
    """Return the smallest p value that the exact test can give for n pairs: 2^(1 - n)."""
    return 2.0 ** (1 - num_pairs)


def pairs_needed(num_tests: int, level: float = LEVEL) -> int:
    """Return the smallest number of pairs with which the exact test can be significant after Holm's correction.

    At least one of `num_tests` tests must reach level / num_tests.
    """
    return 1 + math.ceil(math.log2(max(num_tests, 1) / level) - ROUNDING)


def _pairs(first: ArrayLike, second: ArrayLike) -> NDArray[np.float64]:
    """Return the scores as an array (2, n)."""
    one, other = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if one.ndim != 1 or one.shape != other.shape:
        raise MetricError(f"scores of shapes {one.shape} and {other.shape} make no pairs: give two lists of one length")
    if not 2 <= len(one) <= MAX_PAIRS:
        raise MetricError(f"{len(one)} pairs of scores cannot be tested: give 2 to {MAX_PAIRS}")
    scores = np.stack([one, other])
    if not np.isfinite(scores).all():
        raise MetricError("the scores contain NaN or infinity: leave out the pairs of runs that have no score")
    return scores


def _sign_flip_p_value(differences: NDArray[np.float64]) -> float:
    """Return the share of all assignments of signs whose sum is at least as far from zero as the observed one.

    The first sign stays fixed, because an assignment and its opposite have the same distance.
    """
    sums = differences[:1]
    for difference in differences[1:]:
        sums = np.concatenate([sums + difference, sums - difference])
    observed = abs(float(differences.sum()))
    return float((np.abs(sums) >= observed - ROUNDING * float(np.abs(differences).sum())).mean())
