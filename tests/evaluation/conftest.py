"""Tables of codes and factors. M samples, N units, F factors."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

SIZES = (4, 3, 3)
Table = tuple[NDArray[np.float64], NDArray[np.int64]]


def grid(*, repeats: int = 4) -> NDArray[np.int64]:
    """A complete grid of factors (M, F)."""
    return np.tile(np.indices(SIZES).reshape(len(SIZES), -1).T, (repeats, 1)).astype(np.int64)


@pytest.fixture
def good() -> Table:
    """A unit for each factor and one of noise, on a complete grid."""
    factors, rng = grid(), np.random.default_rng(0)
    return np.column_stack([factors + 0.2 * rng.normal(size=factors.shape), rng.normal(size=len(factors))]), factors


@pytest.fixture
def scattered() -> Table:
    """Rows that are no grid: correlated factors, of which some combinations never occur."""
    rng = np.random.default_rng(1)
    first = rng.integers(4, size=600)
    factors = np.stack([first, np.minimum(first, rng.integers(4, size=600)), rng.integers(3, size=600)], axis=1)
    return factors + 0.1 * rng.normal(size=factors.shape), factors
