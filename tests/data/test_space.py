from __future__ import annotations

import itertools

import numpy as np
import pytest

from raydis.data.space import FactorSpace, check_indices
from raydis.errors import DataError

SPACE = FactorSpace(("colour", "size", "angle"), (2, 3, 5))


def random_space(rng: np.random.Generator) -> FactorSpace:
    sizes = tuple(int(size) for size in rng.integers(1, 9, size=rng.integers(1, 7)))
    return FactorSpace(tuple(f"factor{f}" for f in range(len(sizes))), sizes)


def test_indices_run_through_the_grid_with_the_last_factor_fastest() -> None:
    expected = np.array(list(itertools.product(range(2), range(3), range(5))))
    np.testing.assert_array_equal(SPACE.factors(np.arange(30)), expected)
    np.testing.assert_array_equal(SPACE.index(expected), np.arange(30))
    assert len(SPACE) == 30


@pytest.mark.parametrize("seed", range(20))
def test_index_and_factors_undo_each_other_on_any_grid(seed: int) -> None:
    rng = np.random.default_rng(seed)
    space = random_space(rng)
    indices = rng.integers(0, len(space), size=50)
    factors = space.factors(indices)
    assert factors.dtype == np.int64
    assert (factors < space.sizes).all()
    np.testing.assert_array_equal(space.index(factors), indices)


def test_indices_beyond_float_precision_stay_exact() -> None:
    space = FactorSpace(("a", "b"), (1 << 31, 1 << 31))
    last = np.array([(1 << 62) - 1])
    np.testing.assert_array_equal(space.factors(last), [[(1 << 31) - 1, (1 << 31) - 1]])
    np.testing.assert_array_equal(space.index(space.factors(last)), last)


def test_a_count_spreads_the_kept_levels_evenly_and_a_list_keeps_its_levels_in_order() -> None:
    colour, size, angle = SPACE.kept_levels({"angle": 3, "size": (2, 0)})
    assert colour.tolist() == [0, 1]
    assert size.tolist() == [0, 2]
    assert angle.tolist() == [0, 1, 3]  # floor(i * 5 / 3)
    assert SPACE.subspace({"angle": 3, "size": (2, 0)}) == FactorSpace(SPACE.names, (2, 2, 3))


@pytest.mark.parametrize("seed", range(20))
def test_the_rows_of_a_sub_grid_have_its_factors_with_their_levels_looked_up(seed: int) -> None:
    rng = np.random.default_rng(seed)
    space = random_space(rng)
    levels = {name: int(rng.integers(1, size + 1)) for name, size in zip(space.names, space.sizes, strict=True)}
    sub, kept = space.subspace(levels), space.kept_levels(levels)
    factors = sub.factors(np.arange(len(sub)))
    looked_up = np.stack([kept[f][factors[:, f]] for f in range(len(kept))], axis=1)
    rows = space.rows(levels)
    np.testing.assert_array_equal(space.factors(rows), looked_up)
    assert (np.diff(rows) > 0).all()


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ({"hue": 2}, r"unknown factor hue: the factors are colour, size, angle"),
        ({"size": 4}, r"size: count 4 is out of range, the factor has 3 levels"),
        ({"size": 0}, r"size: count 0 is out of range"),
        ({"size": (0, 3)}, r"size: \[0, 3\] must be distinct and in 0\.\.2"),
        ({"size": (1, 1)}, r"size: \[1, 1\] must be distinct"),
        ({"size": ()}, r"size: \[\] must be distinct .* at least one"),
    ],
)
def test_levels_that_the_grid_does_not_have_are_refused(levels: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        SPACE.kept_levels(levels)


def test_factors_out_of_range_or_not_integers_are_refused() -> None:
    with pytest.raises(DataError, match=r"factor size has levels 1\.\.3, expected 0\.\.2"):
        SPACE.index(np.array([[0, 1, 0], [0, 3, 0]]))
    with pytest.raises(DataError, match=r"factors have shape \(1, 2\), expected \(B, 3\)"):
        SPACE.index(np.array([[0, 1]]))
    with pytest.raises(DataError, match=r"factors are float64, expected integers"):
        SPACE.index(np.zeros((1, 3)))


def test_indices_out_of_range_or_not_integers_are_refused() -> None:
    with pytest.raises(DataError, match=r"indices -1\.\.4 are out of range: the data set has 0\.\.29"):
        SPACE.factors(np.array([4, -1]))
    with pytest.raises(DataError, match=r"indices 30\.\.30 are out of range"):
        SPACE.factors(np.array([30]))
    with pytest.raises(DataError, match=r"indices are float64, expected integers"):
        SPACE.factors(np.array([1.0]))
    with pytest.raises(DataError, match=r"indices have shape \(1, 1\), expected \(B,\)"):
        check_indices(np.zeros((1, 1), int), 5)


@pytest.mark.parametrize(
    ("names", "sizes", "message"),
    [
        (("a",), (2, 3), "as many"),
        (("a", "a"), (2, 3), "distinct"),
        ((), (), "as many"),
        (("a",), (0,), "at least 1"),
        (("a", "b"), (1 << 32, 1 << 32), "fit int64"),
    ],
)
def test_names_and_sizes_that_are_no_grid_are_refused(names: tuple, sizes: tuple, message: str) -> None:
    with pytest.raises(DataError, match=message):
        FactorSpace(names, sizes)
