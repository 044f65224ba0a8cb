"""The grid of ground-truth factors, which converts between the index of an image and its factor levels.

B batch, F factors, K levels of one factor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from raydis.errors import DataError


@dataclass(frozen=True)
class FactorSpace:
    """All combinations of F factors, numbered in C order: the last factor varies fastest.

    Args:
        names: a distinct name for each factor.
        sizes: number of levels K >= 1 of each factor.

    Raises:
        DataError: names and sizes that do not describe a grid, or a grid whose indices do not fit in int64.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.names or len(self.names) != len(self.sizes) or len(set(self.names)) != len(self.names):
            raise DataError(f"factors {self.names} and sizes {self.sizes} must be as many, and every name distinct")
        if min(self.sizes) < 1 or math.prod(self.sizes) >= 1 << 63:
            raise DataError(f"factor sizes {self.sizes} must be at least 1, and their product must fit int64")

    def __len__(self) -> int:
        return math.prod(self.sizes)

    def index(self, factors: np.ndarray) -> np.ndarray:
        """Return the indices of factor vectors.

        Args:
            factors: (B, F) integers, factors[:, f] in [0, sizes[f]).

        Returns:
            (B,) int64 in [0, len(self)).

        Raises:
            DataError: another shape, floats, or a level out of range.
        """
        factors = _integers(factors, "factors")
        if factors.ndim != 2 or factors.shape[1] != len(self.sizes):
            raise DataError(f"factors have shape {factors.shape}, expected (B, {len(self.sizes)}) for {self.names}")
        wrong = ((factors < 0) | (factors >= self.sizes)).any(axis=0)
        if wrong.any():
            f = int(wrong.argmax())
            low, high = factors[:, f].min(), factors[:, f].max()
            raise DataError(f"factor {self.names[f]} has levels {low}..{high}, expected 0..{self.sizes[f] - 1}")
        return np.asarray(np.ravel_multi_index(tuple(factors.T), self.sizes), np.int64)

    def factors(self, indices: np.ndarray) -> np.ndarray:
        """Return the factor vectors of indices: (B,) integers in [0, len(self)) -> (B, F) int64.

        Raises:
            DataError: another shape, floats, or an index out of range.
        """
        indices = check_indices(indices, len(self))
        return np.stack(np.unravel_index(indices, self.sizes), axis=1).astype(np.int64)

    def kept_levels(self, levels: Mapping[str, int | Sequence[int]]) -> tuple[np.ndarray, ...]:
        """Return the ascending levels that a sub-grid keeps of each factor, in the order of `names`.

        Args:
            levels: by factor name: a count n keeps level floor(i*K/n) for i < n; a list keeps its levels, in ascending
                order; a factor that is not named keeps all levels.

        Returns:
            F arrays of int64.

        Raises:
            DataError: an unknown factor, a count or level out of range, or a level listed twice.
        """
        unknown = sorted(set(levels) - set(self.names))
        if unknown:
            raise DataError(f"unknown factor {', '.join(unknown)}: the factors are {', '.join(self.names)}")
        return tuple(
            _kept(name, size, levels.get(name, size)) for name, size in zip(self.names, self.sizes, strict=True)
        )

    def subspace(self, levels: Mapping[str, int | Sequence[int]]) -> FactorSpace:
        """Return the grid of the kept levels. Level i of factor f there is level `kept_levels(levels)[f][i]` here."""
        return FactorSpace(self.names, tuple(len(kept) for kept in self.kept_levels(levels)))

    def rows(self, levels: Mapping[str, int | Sequence[int]]) -> np.ndarray:
        """Return the indices in this grid of the sub-grid's images, in the sub-grid's order: ascending int64."""
        kept = self.kept_levels(levels)
        strides = np.cumprod((1, *self.sizes[:0:-1]), dtype=np.int64)[::-1]
        rows = np.zeros(1, np.int64)
        for stride, selected in zip(strides, kept, strict=True):
            rows = (rows[:, None] + stride * selected).ravel()
        return rows


def check_indices(indices: np.ndarray, length: int) -> np.ndarray:
    """Return indices as (B,) int64. Raise DataError unless they are integers in [0, length)."""
    indices = _integers(indices, "indices")
    if indices.ndim != 1:
        raise DataError(f"indices have shape {indices.shape}, expected (B,)")
    if indices.size and (indices.min() < 0 or indices.max() >= length):
        raise DataError(f"indices {indices.min()}..{indices.max()} are out of range: the data set has 0..{length - 1}")
    return indices


def _integers(values: np.ndarray, what: str) -> np.ndarray:
    values = np.asarray(values)
    if values.dtype.kind not in "iu":
        raise DataError(f"{what} are {values.dtype}, expected integers")
    return values.astype(np.int64, copy=False)


def _kept(name: str, size: int, wanted: int | Sequence[int]) -> np.ndarray:
    if isinstance(wanted, int):
        if not 1 <= wanted <= size:
            raise DataError(f"levels of {name}: count {wanted} is out of range, the factor has {size} levels")
        return np.arange(wanted, dtype=np.int64) * size // wanted
    kept = _integers(np.array(wanted, dtype=np.int64), "levels")
    if not kept.size or kept.min() < 0 or kept.max() >= size or len(np.unique(kept)) != len(kept):
        raise DataError(f"levels of {name}: {list(wanted)} must be distinct and in 0..{size - 1}, and at least one")
    return np.sort(kept)
