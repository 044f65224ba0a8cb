"""Small files in the official layouts, for the tests of the readers and the contract of the data sets.

Each function writes images of pure noise and returns them; `seed` chooses the noise, which keeps the size of a file.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import scipy.io
from PIL import Image

from raydis.data import FactorSpace
from raydis.data.shapes3d import SHAPES3D

SMALL_SHAPES3D = SHAPES3D.subspace({"floor_hue": 2, "wall_hue": 2, "object_hue": 2, "scale": 2, "orientation": 3})
SMALL_DSPRITES = FactorSpace(("shape", "scale", "orientation", "position_x", "position_y"), (3, 2, 2, 2, 2))
SMALL_SPRITES = FactorSpace(("body", "hair"), (2, 3))
MPI3D_LENGTH, MPI3D_PX = 460_800, 2  # 2 px stand for 64: the reader knows the set by its number of images


def grid(space: FactorSpace) -> np.ndarray:
    """Factors of all images, (B, F)."""
    return space.factors(np.arange(len(space)))


def noise(shape: tuple[int, ...], seed: int, values: int = 256) -> np.ndarray:
    """Draw uint8 images."""
    return np.random.default_rng(seed).integers(0, values, shape, np.uint8)


def write_shapes3d(path: Path, *, size: int = 64, seed: int = 0, **replaced: np.ndarray) -> np.ndarray:
    """`3dshapes.h5` with the grid SMALL_SHAPES3D."""
    images = noise((len(SMALL_SHAPES3D), size, size, 3), seed)
    steps, first = np.array([0.1, 0.1, 0.1, 0.5 / 7, 1, 60 / 14]), np.array([0, 0, 0, 0.75, 0, -30])
    arrays = {"images": images, "labels": grid(SMALL_SHAPES3D) * steps + first, **replaced}
    with h5py.File(path, "w") as file:
        for key, array in arrays.items():
            file.create_dataset(key, data=array, compression="gzip", compression_opts=1)
    return images


def write_dsprites(path: Path, *, size: int = 64, seed: int = 0, **replaced: np.ndarray) -> np.ndarray:
    """`dsprites_*.npz` with the grid SMALL_DSPRITES."""
    imgs = noise((len(SMALL_DSPRITES), size, size), seed, 2)
    classes = np.concatenate([np.zeros((len(imgs), 1), int), grid(SMALL_DSPRITES)], axis=1)
    metadata = np.array({"title": "dSprites"}, dtype=object)  # pickled, as in the official file
    arrays = {"metadata": metadata, "imgs": imgs, "latents_classes": classes, "latents_values": classes * 1.0}
    with path.open("wb") as file:  # given a path, NumPy appends its suffix
        np.savez_compressed(file, **{**arrays, **replaced})
    return imgs


def write_mpi3d(path: Path, *, seed: int = 0) -> np.ndarray:
    """`mpi3d_*.npz` of the smaller grid, uncompressed."""
    images = np.zeros((MPI3D_LENGTH, MPI3D_PX, MPI3D_PX, 3), np.uint8)
    images[::1000] = noise(images[::1000].shape, seed)
    with path.open("wb") as file:
        np.savez(file, images=images)
    return images


def write_sprites(path: Path, *, size: int = 16, seed: int = 0) -> np.ndarray:
    """The composed grid of sprites, with SMALL_SPRITES."""
    images = noise((len(SMALL_SPRITES), size, size, 3), seed)
    names, sizes = np.array(SMALL_SPRITES.names), np.array(SMALL_SPRITES.sizes)
    with path.open("wb") as file:
        np.savez(file, images=images, labels=grid(SMALL_SPRITES), factor_names=names, factor_sizes=sizes)
    return images


def write_cars(folder: Path, count: int = 3, *, seed: int = 0) -> np.ndarray:
    """Cars of 4 x 4 large squares; returns (car, elevation, azimuth, 128, 128, 3)."""
    folder.mkdir(parents=True)
    cars = noise((count, 4, 24, 4, 4, 3), seed).repeat(32, axis=3).repeat(32, axis=4)
    for car, views in enumerate(cars):
        im = views.transpose(2, 3, 4, 1, 0)  # (128, 128, 3, 24, 4)
        scipy.io.savemat(folder / f"car_{car:03d}_mesh.mat", {"im": im}, do_compression=True)
    return cars


def write_celeba(folder: Path, seed: int = 0) -> np.ndarray:
    """`img_align_celeba` with 24 pictures, and `list_attr_celeba.txt` with three attributes: returns these as 0 and 1.

    The first attribute lights the left half of a picture, the second the right half, and the third shows nowhere. Each
    combination occurs three times, in an order that `seed` chooses. The halves are whole blocks of a JPEG file, so that
    neither disturbs the other.
    """
    levels = np.random.default_rng(seed).permutation(np.tile(np.indices((2, 2, 2)).reshape(3, -1).T, (3, 1)))
    (folder / "Img" / "img_align_celeba").mkdir(parents=True)
    (folder / "Anno").mkdir()
    lines = [f"{len(levels)}", "Smiling Male Young "]  # the official line of names ends with a space
    for number, row in enumerate(levels, 1):
        pixels = np.repeat(40 + 160 * row[:2], 16).astype(np.uint8)[None, :, None].repeat(40, axis=0).repeat(3, axis=2)
        Image.fromarray(pixels).save(folder / "Img" / "img_align_celeba" / f"{number:06}.jpg")
        lines.append(f"{number:06}.jpg " + " ".join(f"{2 * value - 1:2}" for value in row))
    (folder / "Anno" / "list_attr_celeba.txt").write_text("\n".join(lines) + "\n")
    return levels
