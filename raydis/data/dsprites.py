"""A reproduction of the data set dSprites: white squares, ellipses and hearts on black.

B batch, S scales, T orientations, X Y positions, H W C image.

The shapes were measured on frames of the original (github.com/deepmind/dsprites-dataset). On 129 of these, our drawing
differs by 0.4 pixels per frame on average, and by 4 at most. The original has a sixth factor, colour, with one level
only. It is left out, as in disentanglement_lib's scores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from raydis.data.cache import RAM_BYTES, made_array
from raydis.data.dataset import ArrayDataset, digest
from raydis.data.space import FactorSpace

DSPRITES = FactorSpace(("shape", "scale", "orientation", "position_x", "position_y"), (3, 6, 40, 32, 32))
VERSION = 1  # increased whenever a pixel changes

CANVAS_PX = 64  # all lengths below are in pixels of the original's canvas
SQUARE_HALF_SIDE = 9.6
REACH_PX = 14.0  # bound of the distance from a shape's centre to its points, at scale 1
ELLIPSE_SEMI_AXES = (12.76, 7.22)
HEART_RADII = (  # every 5 degrees from straight up to straight down; the other half is mirrored
    *(5.02, 6.68, 7.89, 8.89, 9.71, 10.28, 10.73, 11.03, 11.18, 11.27, 11.25, 11.11, 10.89),
    *(10.59, 10.17, 9.73, 9.17, 8.63, 8.21, 7.64, 7.19, 6.94, 6.43, 6.44, 6.10, 6.02),
    *(5.94, 5.97, 5.91, 5.95, 5.95, 6.34, 6.34, 6.87, 7.33, 8.03, 9.30),
)


def render_dsprites(
    levels: Mapping[str, int | Sequence[int]], image_size: int, *, cache_dir: Path, ram_bytes: int = RAM_BYTES
) -> ArrayDataset:
    """Draw the sub-grid at the kept levels: images (B, image_size, image_size, 1), 0 or 255.

    Sizes other than the original's 64 px sample the same shapes at more or fewer pixel centres, without antialiasing.

    Args:
        levels: see FactorSpace.kept_levels.
        cache_dir: folder for the .npy file of a grid of more than `ram_bytes`.

    Raises:
        DataError: levels that the grid does not have, or no room for the cache.
    """
    space, kept = DSPRITES.subspace(levels), DSPRITES.kept_levels(levels)
    fingerprint = digest(
        name="dsprites_procedural", version=VERSION, image_size=image_size, kept=[level.tolist() for level in kept]
    )
    shape = (len(space), image_size, image_size, 1)

    def fill(out: np.ndarray) -> None:
        draw(out, kept)

    path = cache_dir / f"dsprites_procedural-{fingerprint[:16]}.npy"
    array = made_array(path, shape, fill, ram_bytes=ram_bytes)
    return ArrayDataset("dsprites_procedural", array, space, fingerprint=fingerprint)


def draw(out: np.ndarray, kept: tuple[np.ndarray, ...]) -> None:
    """Draw the grid of the kept levels into `out`, (B, H, W, 1) uint8 with H = W."""
    shapes, scales, orientations, columns, rows = kept
    size = out.shape[1]
    frames = out.reshape(len(shapes), len(scales), len(orientations), len(columns), len(rows), size, size)
    frames[...] = 0
    centres = (np.arange(size) + 0.5) * (CANVAS_PX / size)
    dx = centres - (16 + 32 * columns[:, None] / 31)  # (X, W)
    dy = (centres - (16 + 32 * rows[:, None] / 31))[:, :, None]  # (Y, H, 1)
    for s, scale in enumerate(0.5 + 0.1 * scales):
        for t, angle in enumerate(2 * math.pi * orientations / 39):  # 39: the first and the last image are equal
            cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
            for x, offsets in enumerate(dx):
                near = np.flatnonzero(np.abs(offsets) < REACH_PX * scale)  # the other pixel columns stay black
                near_dx = offsets[near]
                u, v = cos * near_dx - sin * dy, sin * near_dx + cos * dy  # (Y, H, W of the near columns)
                for k, shape in enumerate(shapes):
                    frames[k, s, t, x, :, :, near[0] : near[-1] + 1] = inside(int(shape), u, v) * np.uint8(255)


def inside(shape: int, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return which points lie in a shape.

    Args:
        shape: 0 square, 1 ellipse, 2 heart.
        u, v: coordinates of points in the frame of the shape, px at scale 1; v points down.
    """
    if shape == 0:
        return np.maximum(np.abs(u), np.abs(v)) < SQUARE_HALF_SIDE
    if shape == 1:
        return (u / ELLIPSE_SEMI_AXES[0]) ** 2 + (v / ELLIPSE_SEMI_AXES[1]) ** 2 < 1
    step = math.pi / (len(HEART_RADII) - 1)
    return np.hypot(u, v) < np.interp(np.arctan2(np.abs(u), -v), step * np.arange(len(HEART_RADII)), HEART_RADII)
