from __future__ import annotations

import numpy as np
from scipy.stats import chisquare

from raydis.metrics.sampling import LevelIndex

# Not a grid: 3 rows of level 7 of factor 0, 1 of level -2; factor 1 is constant.
FACTORS = np.array([[7, 4, 0], [-2, 4, 1], [7, 4, 2], [7, 4, 0]])


def test_the_index_lists_the_rows_of_each_level() -> None:
    index = LevelIndex.of(FACTORS)
    assert index.level.tolist() == [[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 2, 0]]
    assert index.order.tolist() == [[1, 0, 2, 3], [0, 1, 2, 3], [0, 3, 1, 2]]
    assert index.start.tolist() == [[0, 1, 0], [0, 0, 0], [0, 2, 3]]
    assert index.count.tolist() == [[1, 3, 0], [4, 0, 0], [2, 1, 1]]


def test_rows_of_a_batch_agree_in_the_fixed_factor() -> None:
    factors = np.random.default_rng(0).integers(5, size=(300, 4))
    fixed, rows = LevelIndex.of(factors).draw_fixed_factor(np.random.default_rng(1), num_batches=500, batch_size=8)
    assert rows.shape == (500, 8)
    levels = factors[rows, fixed[:, None]]
    assert (levels == levels[:, :1]).all()
    others = factors[rows, (fixed[:, None] + 1) % 4]
    assert (others != others[:, :1]).any(axis=1).mean() > 0.99


def test_factor_level_and_rows_are_drawn_uniformly() -> None:
    fixed, rows = LevelIndex.of(FACTORS).draw_fixed_factor(np.random.default_rng(0), num_batches=20_000, batch_size=2)
    assert chisquare(np.bincount(fixed, minlength=3)[[0, 2]]).pvalue > 1e-3
    # Factor 0: level 7 has three of the four rows, so 3/4 of the batches, and each of its rows a third of those.
    share = np.bincount(rows[fixed == 0].ravel(), minlength=4) / rows[fixed == 0].size
    np.testing.assert_allclose(share, [1 / 4, 1 / 4, 1 / 4, 1 / 4], atol=0.01)
    pairs = rows[(fixed == 0) & (rows[:, 0] == 0)][:, 1]
    np.testing.assert_allclose(np.bincount(pairs, minlength=4) / len(pairs), [1 / 3, 0, 1 / 3, 1 / 3], atol=0.02)


def test_a_constant_factor_is_never_fixed() -> None:
    fixed, _ = LevelIndex.of(FACTORS).draw_fixed_factor(np.random.default_rng(0), num_batches=1000, batch_size=2)
    assert set(fixed.tolist()) == {0, 2}
