"""The sub-grid of a data set's factors that the search protocol encodes and scores."""

from __future__ import annotations

import math
from collections.abc import Sequence

from raydis.errors import MetricError


def search_subgrid(sizes: Sequence[int], max_images: int) -> tuple[tuple[int, ...], ...]:
    """Choose levels of each factor so that the sub-grid of all their combinations has at most `max_images` cells.

    As long as the sub-grid is too large, the factor with the most levels left loses one (of equals, the factor that has
    kept the largest fraction of its levels). All factors thus keep a similar number of levels, at least 2 each (or all
    levels of a factor with fewer). The n kept levels of K are spread evenly: level floor(i * K / n) for each i < n.

    Scores on a sub-grid are higher than those on the whole grid, because its levels lie further apart.

    Args:
        sizes: number of levels of each factor, F of them.
        max_images: largest number of cells.

    Returns:
        F ascending tuples of levels. The same arguments always give the same levels.

    Raises:
        MetricError: even two levels of each factor make too many cells.
    """
    if not sizes or min(sizes) < 1:
        raise MetricError(f"factor sizes {tuple(sizes)} must be positive, and at least one")
    smallest = math.prod(min(size, 2) for size in sizes)
    if smallest > max_images:
        raise MetricError(
            f"max_images={max_images} cannot hold 2 levels of each factor of sizes {tuple(sizes)}: "
            f"raise it to at least {smallest}"
        )
    kept = list(sizes)
    while math.prod(kept) > max_images:
        widest = max(range(len(kept)), key=lambda j: (kept[j], kept[j] / sizes[j]))
        kept[widest] -= 1
    return tuple(tuple(i * size // n for i in range(n)) for size, n in zip(sizes, kept, strict=True))
