"""Synthetic representations of known quality, on the factor grid of 3D Shapes. M samples, N codes, F factors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

SHAPES3D_SIZES = (10, 10, 10, 8, 4, 15)
Kind = Literal["perfect", "permuted", "mixed30", "noisy", "rotated", "noise"]
Table = tuple[NDArray[np.float64], NDArray[np.int64]]


def factor_grid(sizes: Sequence[int]) -> NDArray[np.int64]:
    """All combinations of levels, (M, F), last factor fastest."""
    return np.indices(sizes).reshape(len(sizes), -1).T.astype(np.int64)


def synthetic_codes(kind: Kind, sizes: Sequence[int] = SHAPES3D_SIZES, *, repeats: int = 1, seed: int = 0) -> Table:
    """Codes (M, F + 4) of a full grid (M, F): a standardised level plus noise for each factor, then four noise codes.

    Args:
        kind: `perfect` (noise 0.05), `permuted` (order of levels shuffled), `mixed30` (neighbouring pairs of factor
            codes rotated by 30 degrees), `noisy` (noise 0.5), `rotated` (all codes turned at random), `noise`.
        sizes: levels of each factor.
        repeats: rows of each cell.
        seed: of noise, shuffles and rotation.
    """
    rng = np.random.default_rng(seed)
    factors = np.tile(factor_grid(sizes), (repeats, 1))
    if kind == "noise":
        return rng.normal(size=(len(factors), len(sizes) + 4)), factors
    values = factors.astype(np.float64)
    if kind == "permuted":
        values = np.stack([rng.permutation(size)[factors[:, j]] for j, size in enumerate(sizes)], axis=1) * 1.0
    values = (values - values.mean(axis=0)) / values.std(axis=0)
    values += (0.5 if kind == "noisy" else 0.05) * rng.normal(size=values.shape)
    codes = np.concatenate([values, rng.normal(size=(len(values), 4))], axis=1)
    if kind == "mixed30":
        turn = np.array([[np.sqrt(3), 1.0], [-1.0, np.sqrt(3)]]) / 2
        for first in range(0, len(sizes) - 1, 2):
            codes[:, first : first + 2] = codes[:, first : first + 2] @ turn
    if kind == "rotated":
        codes = codes @ np.linalg.qr(rng.normal(size=(codes.shape[1], codes.shape[1])))[0]
    return codes, factors


@pytest.fixture(scope="session")
def synthetic() -> Callable[..., Table]:
    return synthetic_codes
