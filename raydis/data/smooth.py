"""Two rendered data sets whose factors vary smoothly, `arcs` and `blobs`, for methods that assume continuous factors.

B batch, H W image, K levels of one factor.

Each factor is a real number in [0, 1], uniformly distributed. A data set holds the 24 evenly spaced values of each, so
that it has a grid of factors as the other data sets have and every metric can score it. The steps are so small that
neighbouring images overlap and a neighbourhood graph connects them: to a method, the factors are continuous.

- `arcs`: each factor moves a point along an arc of 270 degrees at constant speed. The two coordinates of this point are
  the weights of two smooth patterns, which are orthogonal to all other patterns. The map from factors to images is
  therefore exactly isometric, up to the rounding of pixels, and yet curved, so that a linear method does not suffice.
- `blobs`: one blob moves in two directions, another in one. The blobs never meet, so each step of a factor changes the
  image by the same amount, up to the tails of the blobs, whatever the other factors are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raydis.data.cache import RAM_BYTES, made_array
from raydis.data.dataset import ArrayDataset, digest
from raydis.data.space import FactorSpace

NUM_LEVELS = 24
ARCS = FactorSpace(("first_arc", "second_arc", "third_arc"), (NUM_LEVELS,) * 3)
BLOBS = FactorSpace(("left_x", "left_y", "right_y"), (NUM_LEVELS,) * 3)
VERSION = 1  # increased whenever a pixel changes

IMAGES_AT_ONCE = 512

ARC_ANGLE = 1.5 * math.pi
# Vertical and horizontal frequency, in half waves, of the two patterns of each arc.
ARC_PATTERNS = (((0, 1), (1, 0)), ((1, 1), (0, 2)), ((2, 0), (1, 2)))
ARC_CONTRAST = 127.5 / 7.0  # grey levels: the patterns of the arcs add up to 2 + sqrt(6) + sqrt(6) < 7 at most

# Blobs: positions and the standard deviation as shares of the image's side.
BLOB_DEVIATION = 2.5 / 32
LEFT_X, RIGHT_X, BLOB_Y = (7 / 32, 13 / 32), 25 / 32, (8 / 32, 24 / 32)
BLOB_PEAK = 250.0


def render_arcs(
    levels: Mapping[str, int | Sequence[int]], image_size: int, *, cache_dir: Path, ram_bytes: int = RAM_BYTES
) -> ArrayDataset:
    """Render the sub-grid of `arcs` at the kept levels: images (B, image_size, image_size, 1).

    Args:
        levels: see FactorSpace.kept_levels.
        cache_dir: folder for the .npy file of a grid of more than `ram_bytes`.

    Raises:
        DataError: levels that the grid does not have, or no room for the cache.
    """
    return _render("arcs", ARCS, draw_arcs, levels, image_size, cache_dir, ram_bytes)


def render_blobs(
    levels: Mapping[str, int | Sequence[int]], image_size: int, *, cache_dir: Path, ram_bytes: int = RAM_BYTES
) -> ArrayDataset:
    """Render the sub-grid of `blobs` at the kept levels; arguments and errors as in `render_arcs`."""
    return _render("blobs", BLOBS, draw_blobs, levels, image_size, cache_dir, ram_bytes)


def draw_arcs(values: NDArray[np.float64], image_size: int) -> NDArray[np.float64]:
    """Return the images (B, H, W), in grey levels before rounding, of factors (B, F) in [0, 1], F <= 3."""
    centres = (np.arange(image_size) + 0.5) / image_size
    waves = np.cos(math.pi * np.arange(3)[:, None] * centres)
    waves[1:] *= math.sqrt(2.0)  # all waves have the same norm
    used = ARC_PATTERNS[: values.shape[1]]
    patterns = np.array([np.outer(waves[down], waves[across]) for pair in used for down, across in pair])
    angles = ARC_ANGLE * values
    weights = np.stack([np.cos(angles), np.sin(angles)], axis=2).reshape(len(values), -1)
    return 127.5 + ARC_CONTRAST * np.einsum("bp,phw->bhw", weights, patterns)


def draw_blobs(values: NDArray[np.float64], image_size: int) -> NDArray[np.float64]:
    """Return the images (B, H, W), in grey levels before rounding, of factors (B, 3) in [0, 1]."""

    def profile(positions: NDArray[np.float64]) -> NDArray[np.float64]:
        centres = (np.arange(image_size) + 0.5) / image_size
        return np.exp(-0.5 * ((centres - positions[:, None]) / BLOB_DEVIATION) ** 2)

    def between(ends: tuple[float, float], share: NDArray[np.float64]) -> NDArray[np.float64]:
        return ends[0] + (ends[1] - ends[0]) * share

    left_x, left_y, right_y = values.T
    left = profile(between(BLOB_Y, left_y))[:, :, None] * profile(between(LEFT_X, left_x))[:, None]
    right = profile(between(BLOB_Y, right_y))[:, :, None] * profile(np.full(len(values), RIGHT_X))[:, None]
    return BLOB_PEAK * (left + right)


def _render(
    name: str,
    space: FactorSpace,
    draw: Callable[[NDArray[np.float64], int], NDArray[np.float64]],
    levels: Mapping[str, int | Sequence[int]],
    image_size: int,
    cache_dir: Path,
    ram_bytes: int,
) -> ArrayDataset:
    kept, part = space.kept_levels(levels), space.subspace(levels)
    fingerprint = digest(name=name, version=VERSION, image_size=image_size, kept=[level.tolist() for level in kept])

    def fill(out: np.ndarray) -> None:
        for first in range(0, len(part), IMAGES_AT_ONCE):
            rows = part.factors(np.arange(first, min(first + IMAGES_AT_ONCE, len(part))))
            values = np.stack([level[column] for level, column in zip(kept, rows.T, strict=True)], axis=1)
            out[first : first + len(rows), :, :, 0] = np.rint(draw(values / (NUM_LEVELS - 1), image_size))

    path = cache_dir / f"{name}-{fingerprint[:16]}.npy"
    array = made_array(path, (len(part), image_size, image_size, 1), fill, ram_bytes=ram_bytes)
    return ArrayDataset(name, array, part, fingerprint=fingerprint)
