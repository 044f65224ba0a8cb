"""The interface of a data set (`FactorDataset`), and its implementation by an array of images (`ArrayDataset`).

B batch, F factors, H W C image.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from raydis.data.space import FactorSpace, check_indices
from raydis.errors import DataError


@dataclass(frozen=True, eq=False)
class Labels:
    """The factors of images that are no grid, such as the attributes of photographs.

    Args:
        names: F distinct names.
        levels: (B, F) int64, row i for image i.
    """

    names: tuple[str, ...]
    levels: np.ndarray


class FactorDataset(Protocol):
    """Images numbered 0..len-1 and, if they are known, the generative factors of each image.

    Factors are labels for metrics. Training never reads them.
    """

    @property
    def name(self) -> str:
        """The name of the data set, as in DataConfig.name."""
        ...

    @property
    def space(self) -> FactorSpace | None:
        """The grid that the images fill in the order of their indices; None if they fill none."""
        ...

    @property
    def factor_names(self) -> tuple[str, ...]:
        """The names of the F factors, whether these form a grid or not; empty if the factors are unknown."""
        ...

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape (H, W, C) of every image."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hex digest of the origin of the images: the definition of a rendered set, or the files of another."""
        ...

    def __len__(self) -> int: ...

    def images(self, indices: np.ndarray) -> np.ndarray:
        """Return images (B, H, W, C) uint8 for (B,) integer indices. Raise DataError for an index out of range."""
        ...

    def factors(self, indices: np.ndarray) -> np.ndarray:
        """Return factors (B, F) int64 for (B,) integer indices.

        Raises:
            DataError: an index out of range, or a data set without factors.
        """
        ...


class ArrayDataset:
    """A data set whose images are the rows of one array, in memory or memory-mapped, or a selection of its rows.

    Args:
        name: of the set, for errors and reports.
        array: (R, H, W, C) uint8; it is not copied.
        space: the grid that the images fill in order, or None.
        fingerprint: digest of the images' origin.
        labels: the factors of images that fill no grid, or None.
        rows: (B,) positions in `array` of images 0..B-1; None stands for all rows in order.

    Raises:
        DataError: an array of another layout, rows out of range, or a number of images other than the grid's or the
            labels'.
    """

    def __init__(
        self,
        name: str,
        array: np.ndarray,
        space: FactorSpace | None,
        *,
        fingerprint: str,
        labels: Labels | None = None,
        rows: np.ndarray | None = None,
    ) -> None:
        if array.ndim != 4 or array.dtype != np.uint8:
            raise DataError(f"{name}: images are {array.dtype} {array.shape}, expected uint8 (B, H, W, C)")
        self.name = name
        self.array = array
        self.space = space
        self.fingerprint = fingerprint
        self.labels = labels
        self.rows = rows if rows is None else check_indices(rows, len(array))
        if not len(self) or (space is not None and len(space) != len(self)):
            grid = "at least 1" if space is None else f"{len(space)} for factor sizes {space.sizes}"
            raise DataError(f"{name}: {len(self)} images, expected {grid}")
        if labels is not None and (space is not None or labels.levels.shape != (len(self), len(labels.names))):
            raise DataError(f"{name}: labels of shape {labels.levels.shape} do not belong to {len(self)} images")

    def __len__(self) -> int:
        return len(self.array) if self.rows is None else len(self.rows)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        height, width, channels = self.array.shape[1:]
        return height, width, channels

    def images(self, indices: np.ndarray) -> np.ndarray:
        return self.array[self.array_rows(indices)]

    @property
    def factor_names(self) -> tuple[str, ...]:
        if self.space is not None:
            return self.space.names
        return () if self.labels is None else self.labels.names

    def factors(self, indices: np.ndarray) -> np.ndarray:
        if self.labels is not None:
            return self.labels.levels[check_indices(indices, len(self))]
        if self.space is None:
            raise DataError(f"{self.name} has no factors: choose a set with a factor grid to score codes")
        return self.space.factors(indices)

    def array_rows(self, indices: np.ndarray) -> np.ndarray:
        """Return the positions in `array`, (B,) int64, of images (B,). Raise DataError for an index out of range."""
        indices = check_indices(indices, len(self))
        return indices if self.rows is None else self.rows[indices]

    def subgrid(self, levels: Mapping[str, int | Sequence[int]]) -> ArrayDataset:
        """Return the images at the kept levels (see FactorSpace.kept_levels) as a data set on the same array.

        Raises:
            DataError: no grid of factors, or levels that the grid does not have.
        """
        if self.space is None:
            raise DataError(f"{self.name} has no grid of factors, so it has no sub-grid: remove data.levels")
        kept = [level.tolist() for level in self.space.kept_levels(levels)]
        return ArrayDataset(
            self.name,
            self.array,
            self.space.subspace(levels),
            fingerprint=digest(of=self.fingerprint, kept=kept),
            rows=self.array_rows(self.space.rows(levels)),
        )


def digest(**facts: object) -> str:
    """Return the hexadecimal SHA-256 of named JSON values."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
