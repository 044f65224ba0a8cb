"""Draw batches in which one factor is fixed, for the FactorVAE and the BetaVAE score. M samples, F factors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class LevelIndex:
    """An index of the rows that hold each level of each factor.

    Attributes:
        level: (F, M), level of each row, counted from 0 among the levels that occur.
        order: (F, M), rows sorted by level.
        start, count: (F, largest number of levels), first position of a level's rows in `order`, and their number.
    """

    level: NDArray[np.int32]
    order: NDArray[np.int32]
    start: NDArray[np.int64]
    count: NDArray[np.int64]

    @classmethod
    def of(cls, factors: NDArray[np.int64]) -> Self:
        """Index a table of factors (M, F)."""
        num_samples, num_factors = factors.shape
        order = np.argsort(factors.T, axis=1, kind="stable").astype(np.int32)
        level = np.empty_like(order)
        starts: list[NDArray[np.int64]] = []
        counts: list[NDArray[np.int64]] = []
        for k in range(num_factors):
            ascending = factors[order[k], k]
            new = np.append(True, ascending[1:] != ascending[:-1])
            level[k, order[k]] = np.cumsum(new) - 1
            starts.append(np.flatnonzero(new))
            counts.append(np.diff(starts[-1], append=num_samples))
        width = max(map(len, starts))
        start, count = np.zeros((2, num_factors, width), np.int64)
        for k in range(num_factors):
            start[k, : len(starts[k])], count[k, : len(counts[k])] = starts[k], counts[k]
        return cls(level, order, start, count)

    def draw_fixed_factor(
        self, rng: np.random.Generator, *, num_batches: int, batch_size: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Draw batches of rows in which one factor is fixed and the others are random.

        For each batch, this picks a varying factor uniformly, the level of a uniformly drawn row, and `batch_size` rows
        uniformly, with replacement, among those of that level. On a full grid of factors, this is equivalent to
        disentanglement_lib's method: draw factor vectors, and overwrite one column by its first value.

        Returns:
            The fixed factor of each batch (num_batches,), and the rows (num_batches, batch_size).
        """
        varying = np.flatnonzero((self.count > 0).sum(axis=1) > 1)
        fixed = varying[rng.integers(len(varying), size=num_batches)]
        level = self.level[fixed, rng.integers(self.level.shape[1], size=num_batches)]
        offset = rng.integers(self.count[fixed, level][:, None], size=(num_batches, batch_size))
        return fixed, self.order[fixed[:, None], self.start[fixed, level][:, None] + offset]

    def draw_pairs(
        self, rng: np.random.Generator, *, num_batches: int, batch_size: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]:
        """Draw batches of pairs of rows that agree in one factor, the same for all pairs of a batch.

        For each batch, this picks a varying factor uniformly; for each pair a row uniformly, and another uniformly
        among those of its level. On a full grid of factors, this is equivalent to disentanglement_lib's method:
        draw two tables of factor vectors, and copy one column of the first to the second.

        Returns:
            The fixed factor of each batch (num_batches,), and the rows of both sides, each (num_batches, batch_size).
        """
        varying = np.flatnonzero((self.count > 0).sum(axis=1) > 1)
        fixed = varying[rng.integers(len(varying), size=num_batches)]
        first = rng.integers(self.level.shape[1], size=(num_batches, batch_size))
        level = self.level[fixed[:, None], first]
        offset = rng.integers(self.count[fixed[:, None], level])
        return fixed, first, self.order[fixed[:, None], self.start[fixed[:, None], level] + offset]
