"""The part of a data set that the search protocol scores."""

from __future__ import annotations

import math
from collections.abc import Sequence

from raydis.errors import MetricError


def search_subgrid(sizes: Sequence[int], max_images: int) -> tuple[tuple[int, ...], ...]:
    """The part of a factor grid that the search protocol scores: levels whose product has at most `max_images` cells.

    The factor with most levels left loses one, and of equals the one that has kept the largest part of its own, until
    the grid fits; so all factors keep about as many levels, at least 2 each. A trial then encodes only these cells.
    Levels are spread evenly: level floor(i * K / n) of K for each i < n.

    A sub-grid is easier than its grid, since its levels lie further apart: its scores read higher.

    Args:
        sizes: number of levels of each factor, F of them.
        max_images: bound of the number of cells.

    Returns:
        F ascending tuples of levels, the same for the same arguments.

    Raises:
        MetricError: two levels of each factor are already too many.
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
