"""What every data set offers, and the one class that all of them end in: an array with a factor grid.

Letters: B batch, F factors, H W C image.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from raydis.data.space import FactorSpace, check_indices
from raydis.errors import DataError


class FactorDataset(Protocol):
    """Images numbered 0..len-1 and, where they are known, the factors that made them.

    Labels are for metrics: fitting never touches them.
    """

    @property
    def name(self) -> str:
        """Name of the set, as in DataConfig.name."""
        ...

    @property
    def space(self) -> FactorSpace | None:
        """Grid that the images fill in index order; None where factors are unknown."""
        ...

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hex digest of what makes the images: the definition of a rendered set, the files of a read one."""
        ...

    def __len__(self) -> int: ...

    def images(self, indices: np.ndarray) -> np.ndarray:
        """(B,) integers -> (B, H, W, C) uint8. Raises DataError for an index out of range."""
        ...

    def factors(self, indices: np.ndarray) -> np.ndarray:
        """(B,) integers -> (B, F) int64. Raises DataError for an index out of range, or without factors."""
        ...


class ArrayDataset:
    """Images in one array, in memory or memory-mapped, or those at `rows` of it.

    Args:
        name: what errors and reports call the set.
        array: (R, H, W, C) uint8; it is not copied.
        space: grid that the images fill in order, or None.
        fingerprint: digest of the images' origin.
        rows: (B,) positions in `array` of images 0..B-1; None means all of it in order.

    Raises:
        DataError: an array of another layout, rows that leave it, or as many images as the grid does not have.
    """

    def __init__(
        self,
        name: str,
        array: np.ndarray,
        space: FactorSpace | None,
        *,
        fingerprint: str,
        rows: np.ndarray | None = None,
    ) -> None:
        if array.ndim != 4 or array.dtype != np.uint8:
            raise DataError(f"{name}: images are {array.dtype} {array.shape}, expected uint8 (B, H, W, C)")
        self.name = name
        self.array = array
        self.space = space
        self.fingerprint = fingerprint
        self.rows = rows if rows is None else check_indices(rows, len(array))
        if not len(self) or (space is not None and len(space) != len(self)):
            grid = "at least 1" if space is None else f"{len(space)} for factor sizes {space.sizes}"
            raise DataError(f"{name}: {len(self)} images, expected {grid}")

    def __len__(self) -> int:
        return len(self.array) if self.rows is None else len(self.rows)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        height, width, channels = self.array.shape[1:]
        return height, width, channels

    def images(self, indices: np.ndarray) -> np.ndarray:
        return self.array[self.array_rows(indices)]

    def factors(self, indices: np.ndarray) -> np.ndarray:
        if self.space is None:
            raise DataError(f"{self.name} has no factors: choose a set with a factor grid to score codes")
        return self.space.factors(indices)

    def array_rows(self, indices: np.ndarray) -> np.ndarray:
        """Positions in `array` of images: (B,) -> (B,) int64. Raises DataError for an index out of range."""
        indices = check_indices(indices, len(self))
        return indices if self.rows is None else self.rows[indices]

    def subgrid(self, levels: Mapping[str, int | Sequence[int]]) -> ArrayDataset:
        """The images at the kept levels (see FactorSpace.kept_levels), on the same array.

        Raises:
            DataError: no factors, or levels that the grid does not have.
        """
        if self.space is None:
            raise DataError(f"{self.name} has no factors, so it has no sub-grid: remove data.levels")
        kept = [level.tolist() for level in self.space.kept_levels(levels)]
        return ArrayDataset(
            self.name,
            self.array,
            self.space.subspace(levels),
            fingerprint=digest(of=self.fingerprint, kept=kept),
            rows=self.array_rows(self.space.rows(levels)),
        )


def digest(**facts: object) -> str:
    """sha256 of named JSON values, hexadecimal."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
