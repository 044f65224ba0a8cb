"""Confidence intervals of scores. K draws, S training runs, M samples.

A score has three sources of chance, and each has its interval:

- **The metric's samples** ("draws"): a metric draws samples of the table. Its draws with other seeds show how much
  they matter. This is all the chance there is where the table is the whole population, as a complete grid of factors.
- **The rows** ("rows"): another table of M samples would have given another score. The bootstrap (Efron 1979) imitates
  it: each draw after the first scores M rows that are drawn from the table with replacement, with other samples of the
  metric, too. Rows must be independent of each other, which neighbouring frames of a video are not.
- **The training** ("runs"): another training of the same method would have given other codes. Only several runs with
  different training seeds show this.

All intervals are Student's. A bootstrap's percentiles need hundreds of draws, and copies of rows shift them: a score
that measures fit rises with the number of copies. The standard deviation of a few draws suffers little from either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Chance = Literal["rows", "draws", "runs"]
Bounds = tuple[float, float]


def of_one_run(draws: Sequence[float], *, confidence: float) -> tuple[float, float]:
    """Return the standard deviation (divisor K - 1) of K draws, and the half width of the interval around the first.

    If the draws are independent and normally distributed, the interval contains their expectation with probability
    `confidence`. The first draw is the score, as published, and not the mean of the draws, so its interval does not
    shrink with K.

    Args:
        draws: at least two.
        confidence: between 0 and 1.
    """
    deviation = float(np.std(draws, ddof=1))
    return deviation, _quantile(confidence, len(draws) - 1) * deviation


def of_runs(values: Sequence[float], *, confidence: float) -> tuple[float, float]:
    """Return the standard deviation (divisor S - 1) of the scores of S runs, and the half width around their mean.

    The interval contains the expected score of a run with probability `confidence` if the scores are independent and
    normally distributed.

    Args:
        values: at least two.
        confidence: between 0 and 1.
    """
    deviation = float(np.std(values, ddof=1))
    return deviation, _quantile(confidence, len(values) - 1) * deviation / math.sqrt(len(values))


def within(value: float, half_width: float, bounds: Bounds) -> Bounds:
    """Return the interval around a value, cut where it leaves the range that the number can have."""
    return max(value - half_width, bounds[0]), min(value + half_width, bounds[1])


def is_complete_grid(factors: NDArray[np.int64]) -> bool:
    """Return whether the rows of (M, F) are all combinations of the levels that occur, each equally often."""
    levels = [np.unique(column, return_inverse=True) for column in factors.T]
    num_cells = math.prod(len(values) for values, _ in levels)
    if len(factors) % num_cells:
        return False
    cell = np.zeros(len(factors), np.int64)
    for values, place in levels:
        cell = cell * len(values) + place
    return bool((np.bincount(cell, minlength=num_cells) == len(factors) // num_cells).all())


def _quantile(confidence: float, degrees: int) -> float:
    """Return the quantile of Student's distribution that bounds its central share `confidence`."""
    from scipy.special import stdtrit  # pyright: ignore[reportMissingTypeStubs]  (takes half a second)

    return float(stdtrit(degrees, 0.5 + confidence / 2))
