from __future__ import annotations

import numpy as np
import pytest

from raydis.data import ArrayDataset, FactorSpace
from raydis.errors import DataError

SPACE = FactorSpace(("a", "b"), (3, 4))


def grid() -> ArrayDataset:
    """Image i is constant, of value i."""
    images = np.repeat(np.arange(12, dtype=np.uint8), 2 * 2 * 1).reshape(12, 2, 2, 1)
    return ArrayDataset("grid", images, SPACE, fingerprint="f")


def test_an_array_gives_its_images_and_their_factors() -> None:
    dataset = grid()
    assert len(dataset) == 12
    assert dataset.image_shape == (2, 2, 1)
    np.testing.assert_array_equal(dataset.images(np.array([7, 2]))[:, 0, 0, 0], [7, 2])
    np.testing.assert_array_equal(dataset.factors(np.array([7, 2])), [[1, 3], [0, 2]])


def test_a_sub_grid_shows_the_kept_images_on_the_same_memory() -> None:
    dataset = grid()
    sub = dataset.subgrid({"a": (0, 2), "b": 2})
    assert sub.space == FactorSpace(("a", "b"), (2, 2))
    np.testing.assert_array_equal(sub.images(np.arange(4))[:, 0, 0, 0], [0, 2, 8, 10])
    assert sub.array is dataset.array


def test_a_sub_grid_of_a_sub_grid_counts_its_levels_there() -> None:
    sub = grid().subgrid({"b": (1, 3)}).subgrid({"b": (1,)})
    np.testing.assert_array_equal(sub.images(np.arange(3))[:, 0, 0, 0], [3, 7, 11])


def test_fingerprints_tell_sub_grids_apart_and_do_not_depend_on_how_levels_are_written() -> None:
    one, same, other = ({"b": 2}, {"b": (0, 2)}, {"b": (0, 1)})
    assert grid().subgrid(one).fingerprint == grid().subgrid(same).fingerprint
    assert grid().subgrid(one).fingerprint != grid().subgrid(other).fingerprint
    assert grid().subgrid(one).fingerprint != grid().fingerprint


def test_images_without_factors_have_no_factors_and_no_sub_grid() -> None:
    dataset = ArrayDataset("photos", np.zeros((2, 4, 4, 3), np.uint8), None, fingerprint="f")
    with pytest.raises(DataError, match="photos has no factors: choose a set with a factor grid"):
        dataset.factors(np.array([0]))
    with pytest.raises(DataError, match=r"photos has no grid of factors.*remove data.levels"):
        dataset.subgrid({"a": 1})


def test_an_index_outside_the_set_is_refused_also_where_the_array_goes_on() -> None:
    sub = grid().subgrid({"a": 1})
    with pytest.raises(DataError, match=r"indices 4\.\.4 are out of range: the data set has 0\.\.3"):
        sub.images(np.array([4]))
    with pytest.raises(DataError, match=r"indices 4\.\.4 are out of range"):
        sub.factors(np.array([4]))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((12, 2, 2, 1)), r"float64 \(12, 2, 2, 1\), expected uint8"),
        (np.zeros((12, 2, 2), np.uint8), r"uint8 \(12, 2, 2\), expected uint8 \(B, H, W, C\)"),
        (np.zeros((11, 2, 2, 1), np.uint8), r"11 images, expected 12 for factor sizes \(3, 4\)"),
    ],
)
def test_an_array_that_does_not_fill_the_grid_is_refused(array: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ArrayDataset("grid", array, SPACE, fingerprint="f")


def test_a_set_without_images_is_refused() -> None:
    with pytest.raises(DataError, match="0 images, expected at least 1"):
        ArrayDataset("empty", np.zeros((0, 2, 2, 1), np.uint8), None, fingerprint="f")
