"""Confidence intervals of scores. K draws, S training runs, M samples, F factors.

A score has three sources of chance, and each has its kind of interval:

- "draws": a metric draws random samples of the table, and draws with other seeds show how much they matter. This is all
  the chance there is if the table is the whole population, as a complete grid of factors is.
- "rows": another table of M samples would have given another score. The bootstrap (Efron, Annals of Statistics 1979)
  imitates other tables: each draw after the first scores M rows that are drawn from the table with replacement. The
  metric's samples differ from draw to draw, too. The rows must be independent, which frames of one video are not.
- "runs": another training of the same method would have given other codes. Only runs with different training seeds show
  this. Runs that are scored with the same seed share the metrics' samples, so the interval leaves out their chance.

All three use Student's t distribution. Percentiles of the bootstrap would need hundreds of draws, and would lie in the
wrong place: copies of a row stand among the training and the test rows of a metric, which raises its accuracy. The
standard deviation over the bootstrap's draws does not have this fault. For two factors, two mixed noisy units and 500
to 2,000 rows, it was 0.7 to 1.4 times that over 25 independent tables, for DCI and MIG, while the means differed by up
to seven standard deviations. The metrics' own samples alone gave a fifth to the whole of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["rows", "draws", "runs"]
LEAST_DRAWS = 3  # two after the first


def around_first(draws: Sequence[float], *, confidence: float) -> tuple[float, float]:
    """Return the standard deviation over the draws of one run, and the half width of the interval around the first.

    The first draw is the score, as published, and not the mean of the draws: the interval does not shrink with K. The
    other draws alone give the standard deviation. It is therefore independent of the score, and that of the bootstrap
    does not contain the distance between the bootstrap's draws and the table.

    Args:
        draws: K values, at least LEAST_DRAWS.
        confidence: between 0 and 1.
    """
    deviation = float(np.std(draws[1:], ddof=1))
    return deviation, _quantile(confidence, len(draws) - 2) * deviation


def around_mean(values: Sequence[float], *, confidence: float) -> tuple[float, float]:
    """Return the standard deviation over runs, and the half width of the interval around their mean.

    Args:
        values: the scores of S runs, at least two.
        confidence: between 0 and 1.
    """
    deviation = float(np.std(values, ddof=1))
    return deviation, _quantile(confidence, len(values) - 1) * deviation / math.sqrt(len(values))


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
    """Return the quantile of Student's t distribution that bounds its central share `confidence`."""
    from scipy.special import stdtrit  # pyright: ignore[reportMissingTypeStubs]  (takes half a second)

    return float(stdtrit(degrees, 0.5 + confidence / 2))
