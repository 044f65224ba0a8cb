"""Order points by several objectives, as NSGA-II does (Deb et al., IEEE Trans. Evolutionary Computation 6, 2002).

All points are oriented: larger is better in every objective (see `Objective.oriented`). One point dominates another if
it is at least as good in every objective and better in one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raydis.errors import MetricError

DIGITS = 12  # of a crowding distance; differences below 1e-12 are rounding, and count as none


def front_ranks(points: ArrayLike) -> NDArray[np.int64]:
    """Return the front of each point: 0 if no point dominates it, 1 if only points of front 0 do, and so on.

    The fronts depend only on the order of the values in each objective. With one objective, each front holds the points
    of one value.

    Args:
        points: (N, M) finite values of M objectives; larger is better.

    Raises:
        MetricError: the points are not a finite matrix with at least one objective.
    """
    table = _checked(points)
    at_least = (table[:, None] >= table[None]).all(axis=2)
    dominates = at_least & ~at_least.T
    ranks = np.full(len(table), -1, dtype=np.int64)
    rank = 0
    while (left := ranks < 0).any():
        ranks[left & ~(dominates & left[:, None]).any(axis=0)] = rank
        rank += 1
    return ranks


def crowding_distances(points: ArrayLike) -> NDArray[np.float64]:
    """Return how far apart the neighbours of each point of a front are, in [0, M] or infinite.

    It is the sum over the objectives of the distance between the next lower and the next higher value, divided by the
    range of the objective. It is infinite for a point with the highest or the lowest value of an objective that varies.
    Neither the unit of an objective nor its zero changes it, nor does the order of the objectives or of the points:
    equal points have equal distances.

    Args:
        points: (N, M) finite values of M objectives, usually of one front.

    Raises:
        MetricError: the points are not a finite matrix with at least one objective.
    """
    table = _checked(points)
    total = np.zeros(len(table))
    for values in table.T:
        known = np.unique(values)
        if len(known) < 2:
            continue
        gaps = np.full(len(known), np.inf)
        gaps[1:-1] = (known[2:] - known[:-2]) / (known[-1] - known[0])
        total += gaps[np.searchsorted(known, values)]
    return np.round(total, DIGITS)


def _checked(points: ArrayLike) -> NDArray[np.float64]:
    table = np.asarray(points, dtype=np.float64)
    if table.ndim != 2 or not table.shape[1]:
        raise MetricError(f"points have shape {table.shape}: give a row for each point, a column for each objective")
    if not np.isfinite(table).all():
        raise MetricError("a point has a value that is not finite: leave it out")
    return table
