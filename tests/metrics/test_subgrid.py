from __future__ import annotations

import math

import pytest

from raydis.errors import MetricError
from raydis.metrics.subgrid import search_subgrid


def test_the_shapes3d_grid_shrinks_to_ten_thousand_balanced_cells() -> None:
    levels = search_subgrid((10, 10, 10, 8, 4, 15), 10_000)
    assert [len(kept) for kept in levels] == [5, 5, 5, 4, 4, 5]
    assert levels[0] == (0, 2, 4, 6, 8)
    assert levels[5] == (0, 3, 6, 9, 12)


@pytest.mark.parametrize(
    ("sizes", "max_images"),
    [((6, 6, 2, 3, 3, 40, 40), 10_000), ((4, 24, 183), 10_000), ((3, 6, 40, 32, 32), 100), ((1, 5, 2), 4), ((7, 7), 9)],
)
def test_a_subgrid_is_bounded_and_keeps_two_levels_of_each_factor_that_has_them(
    sizes: tuple[int, ...], max_images: int
) -> None:
    levels = search_subgrid(sizes, max_images)
    counts = [len(kept) for kept in levels]
    assert max_images / 2 < math.prod(counts) <= max_images
    for size, kept in zip(sizes, levels, strict=True):
        assert min(size, 2) <= len(kept) <= size
        assert list(kept) == sorted(set(kept))
        assert 0 <= kept[0] <= kept[-1] < size
    assert levels == search_subgrid(sizes, max_images)


def test_a_grid_that_fits_is_kept_whole() -> None:
    assert search_subgrid((3, 2), 6) == ((0, 1, 2), (0, 1))


def test_too_small_a_bound_is_refused_with_the_smallest_that_works() -> None:
    with pytest.raises(MetricError, match=r"max_images=7 cannot hold 2 levels .*raise it to at least 8"):
        search_subgrid((5, 5, 5, 1), 7)


@pytest.mark.parametrize("sizes", [(), (3, 0)])
def test_sizes_of_no_grid_are_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(MetricError, match="must be positive, and at least one"):
        search_subgrid(sizes, 10)
