"""A rendered version of the data set 3D Shapes: one object in a room, six factors, 480,000 images.

B batch, V channel values, O orientations, H W C image.

The factors, their values and the order of the images are those of 3D Shapes (github.com/deepmind/3d-shapes). The images
are close to the original (peak signal-to-noise ratio 31 dB on average over 25 images) but lack its textures. The data
set is therefore called `shapes3d_procedural`. The geometry depends on scale, shape and orientation only, so at most 480
cases are ray-traced. An image is the sum of the contributions of floor, wall and object in their hues.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from raydis.data.cache import RAM_BYTES, made_array
from raydis.data.dataset import ArrayDataset, digest
from raydis.data.scene3d import (
    FLOOR,
    OBJECT,
    SCENE,
    SUPERSAMPLING,
    UNIT,
    UNIT_BITS,
    VALUES,
    WALL,
    cast_room,
    material_maps,
)
from raydis.data.space import FactorSpace

SHAPES3D = FactorSpace(("floor_hue", "wall_hue", "object_hue", "scale", "shape", "orientation"), (10, 10, 10, 8, 4, 15))
SCALES = np.linspace(0.75, 1.25, 8)
ORIENTATIONS_DEGREES = np.linspace(-30.0, 30.0, 15)
VERSION = 1  # increased whenever a pixel changes for another reason than the numbers in Scene
RAYS_AT_ONCE = 1 << 20


def render_shapes3d(
    levels: Mapping[str, int | Sequence[int]],
    image_size: int,
    *,
    cache_dir: Path,
    device: torch.device | str = "cpu",
    ram_bytes: int = RAM_BYTES,
) -> ArrayDataset:
    """Render the sub-grid at the kept levels: images (B, image_size, image_size, 3).

    Args:
        levels: see FactorSpace.kept_levels.
        cache_dir: folder for the .npy file of a grid of more than `ram_bytes`.
        device: device that renders. The fingerprint does not depend on it, but single pixels may differ by one level.

    Raises:
        DataError: levels that the grid does not have, or no room for the cache.
    """
    space, kept = SHAPES3D.subspace(levels), SHAPES3D.kept_levels(levels)
    fingerprint = digest(
        name="shapes3d_procedural",
        version=VERSION,
        scene=asdict(SCENE),
        image_size=image_size,
        kept=[level.tolist() for level in kept],
    )
    shape = (len(space), image_size, image_size, 3)

    def fill(out: np.ndarray) -> None:
        draw(out, kept, device)

    path = cache_dir / f"shapes3d_procedural-{fingerprint[:16]}.npy"
    array = made_array(path, shape, fill, ram_bytes=ram_bytes)
    return ArrayDataset("shapes3d_procedural", array, space, fingerprint=fingerprint)


@torch.no_grad()
def draw(out: np.ndarray, kept: tuple[np.ndarray, ...], device: torch.device | str) -> None:
    """Draw the grid of the kept levels into `out`, (B, H, W, 3) uint8 with H = W."""
    size = out.shape[1]
    grid = out.reshape(*(len(level) for level in kept), size, size, 3)
    floor_hues, wall_hues, object_hues, scales, shapes, orientations = kept
    chunk = max(1, RAYS_AT_ONCE // (size * SUPERSAMPLING) ** 2)
    for start in range(0, len(orientations), chunk):
        part = slice(start, start + chunk)
        degrees = torch.tensor(ORIENTATIONS_DEGREES[orientations[part]], dtype=torch.float32, device=device)
        room = cast_room(degrees, size)
        for s, scale in enumerate(SCALES[scales]):
            for k, shape in enumerate(shapes):
                maps, sky = material_maps(room, int(shape), float(scale))
                floors, walls = coloured(maps[FLOOR], floor_hues), coloured(maps[WALL], wall_hues)
                objects = coloured(maps[OBJECT], object_hues)  # (hues, O, H, W, 3)
                for f, floor in enumerate(floors):
                    for w, wall in enumerate(walls):
                        images = (objects + (floor + wall + sky + UNIT // 2)) >> UNIT_BITS
                        grid[f, w, :, s, k, part] = images.to(torch.uint8).cpu().numpy()


def coloured(maps: Tensor, hues: np.ndarray) -> Tensor:
    """Return a material's contribution to the image in each hue: (V, O, H, W) -> (len(hues), O, H, W, 3)."""
    values = [[round(channel * (len(VALUES) - 1)) for channel in hue_rgb(int(hue))] for hue in hues]
    index = torch.tensor(values, device=maps.device)  # (hues, 3)
    return maps[index].movedim(1, -1).contiguous()


def hue_rgb(level: int) -> tuple[float, float, float]:
    """Return HSV(level/10, 1, 1) as RGB in [0, 1]."""
    return colorsys.hsv_to_rgb(level / 10, 1.0, 1.0)
