"""Official files of the factor data sets.

Letters: B batch, F factors, H W C image.

Each reader checks a file's keys, types, shapes and labels before any image is decoded, and describes it as a Source.
Formats as in google-research/disentanglement_lib and the data sets' own repositories. Nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import scipy.io
from PIL import Image
from scipy.io.matlab import MatReadError

from raydis.data.cache import fingerprint_files
from raydis.data.dsprites import DSPRITES
from raydis.data.npz import Member, open_member
from raydis.data.shapes3d import SHAPES3D
from raydis.data.source import Source, numbered, reading
from raydis.data.space import FactorSpace
from raydis.errors import DataError

MPI3D_NAMES = (
    "object_color",
    "object_shape",
    "object_size",
    "camera_height",
    "background_color",
    "horizontal_axis",
    "vertical_axis",
)
MPI3D_SIZES = {1_036_800: (6, 6, 2, 3, 3, 40, 40), 460_800: (4, 4, 2, 3, 3, 40, 40)}
CARS3D_ELEVATIONS, CARS3D_AZIMUTHS, CARS3D_PX = 4, 24, 128
H5_BLOCK = 1024  # images


def read_shapes3d(path: Path, space: FactorSpace = SHAPES3D) -> Source:
    """3D Shapes, `3dshapes.h5`: `images` uint8 (B, 64, 64, 3) and `labels` float (B, 6).

    Args:
        space: grid that the labels must run through.

    Raises:
        DataError: missing or damaged file, other keys, types or shapes, or labels in another order.
    """
    with reading("shapes3d", path), h5py.File(path) as file:
        found = {key: item for key, item in file.items() if isinstance(item, h5py.Dataset)}
        for key in ("images", "labels"):
            if key not in found:
                raise DataError(
                    f"shapes3d: {path} has no key {key}, found {', '.join(found) or 'none'}: use 3dshapes.h5"
                )
        images, labels = found["images"], found["labels"]
        if images.ndim != 4 or images.dtype != np.uint8 or images.shape[3] != 3 or len(images) != len(space):
            raise DataError(
                f"shapes3d: images in {path} are {images.dtype} {images.shape}, "
                f"expected uint8 ({len(space)}, H, W, 3): use the whole 3dshapes.h5"
            )
        _check_labels("shapes3d", path, labels[:], space)
        shape = images.shape

    def blocks() -> Iterator[np.ndarray]:
        with reading("shapes3d", path), h5py.File(path) as file:
            images = file["images"]
            assert isinstance(images, h5py.Dataset)
            for start in range(0, len(images), H5_BLOCK):
                yield images[start : start + H5_BLOCK]

    return Source("shapes3d", shape, space, fingerprint_files({"": path}), lambda: numbered(blocks()))


def read_dsprites(path: Path, space: FactorSpace = DSPRITES) -> Source:
    """dSprites, `dsprites_..._64x64.npz`: `imgs` uint8 (B, 64, 64) in {0, 1}, read as 0 and 255.

    Args:
        space: grid that `latents_classes` must run through after its constant first column, the colour.

    Raises:
        DataError: missing or damaged file, other keys, types or shapes, or labels in another order.
    """
    member = open_member("dsprites", path, "imgs", "uint8", (len(space), None, None))
    classes = open_member("dsprites", path, "latents_classes", "i", (len(space), 1 + len(space.sizes))).read()
    _check_labels("dsprites", path, classes[:, 1:], space)

    def blocks() -> Iterator[np.ndarray]:
        for block in member.blocks():
            if block.max(initial=0) > 1:
                raise DataError(f"dsprites: imgs in {path} hold {block.max()}, expected 0 and 1: use the official file")
            yield block[..., None] * np.uint8(255)

    shape = (*_image_shape(member.shape), 1)
    return Source("dsprites", shape, space, fingerprint_files({"": path}), lambda: numbered(blocks()))


def mpi3d_space(length: int) -> FactorSpace:
    """Grid of an MPI3D file by its number of images: toy, realistic and real have 1,036,800, the complex set 460,800.

    Raises:
        DataError: any other number.
    """
    if length not in MPI3D_SIZES:
        known = " or ".join(f"{known:,}" for known in MPI3D_SIZES)
        raise DataError(f"mpi3d: found {length:,} images, expected {known}: use the whole official .npz")
    return FactorSpace(MPI3D_NAMES, MPI3D_SIZES[length])


def read_mpi3d(path: Path) -> Source:
    """MPI3D, `mpi3d_*.npz`: `images` uint8 (B, 64, 64, 3).

    Raises:
        DataError: missing or damaged file, another key, type or shape, or a number of images that is no MPI3D grid.
    """
    member = open_member("mpi3d", path, "images", "uint8", (None, None, None, 3))
    return _archived_images(member, mpi3d_space(member.shape[0]))


def read_sprites(path: Path) -> Source:
    """A grid of sprites: `images` uint8 (B, H, W, 3), `factor_names` (F,) and `factor_sizes` (F,), `labels` (B, F).

    Raises:
        DataError: missing or damaged file, other keys, types or shapes, or labels in another order.
    """
    names = open_member("sprites", path, "factor_names", "U", (None,)).read()
    sizes = open_member("sprites", path, "factor_sizes", "i", (len(names),)).read()
    space = FactorSpace(tuple(map(str, names)), tuple(map(int, sizes)))
    member = open_member("sprites", path, "images", "uint8", (len(space), None, None, 3))
    _check_labels("sprites", path, open_member("sprites", path, "labels", "i", (len(space), len(names))).read(), space)
    return _archived_images(member, space)


def read_cars3d(folder: Path, image_size: int) -> Source:
    """Cars3D: a folder of .mat files, one a car in the order of their names, `im` uint8 (128, 128, 3, 24, 4).

    Images are reduced with Pillow's antialiasing filter, as disentanglement_lib does; its order of the cars is that of
    the directory, ours is sorted.

    Raises:
        DataError: no such folder, no .mat file in it, or, when it is decoded, a file of another layout.
    """
    files = {path.name: path for path in sorted(folder.glob("*.mat"))}
    if not files:
        raise DataError(f"cars3d: no .mat file in {folder}: set data.path to the folder of the cars' .mat files")
    space = FactorSpace(("elevation", "azimuth", "object"), (CARS3D_ELEVATIONS, CARS3D_AZIMUTHS, len(files)))

    def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        views = np.arange(CARS3D_ELEVATIONS * CARS3D_AZIMUTHS)
        for car, path in enumerate(files.values()):
            yield views * len(files) + car, _read_car(path, image_size)  # the object is the last factor

    return Source("cars3d", (len(space), image_size, image_size, 3), space, fingerprint_files(files), blocks)


def _read_car(path: Path, image_size: int) -> np.ndarray:
    """One car's 4*24 views, elevation by elevation: (96, image_size, image_size, 3) uint8."""
    with reading("cars3d", path):
        try:
            content = scipy.io.loadmat(path, variable_names=["im"])
        except MatReadError as error:  # derives from Exception alone
            raise ValueError(str(error)) from error
    images = content.get("im")
    expected = (CARS3D_PX, CARS3D_PX, 3, CARS3D_AZIMUTHS, CARS3D_ELEVATIONS)
    if images is None or images.shape != expected or images.dtype != np.uint8:
        found = "no variable im" if images is None else f"im {images.dtype} {images.shape}"
        raise DataError(f"cars3d: {path} has {found}, expected im uint8 {expected}: download it again")
    views = images.transpose(4, 3, 0, 1, 2).reshape(-1, CARS3D_PX, CARS3D_PX, 3)
    size = (image_size, image_size)
    return np.stack([np.asarray(Image.fromarray(view).resize(size, Image.Resampling.LANCZOS)) for view in views])


def _archived_images(member: Member, space: FactorSpace) -> Source:
    """RGB images that an archive holds as they are wanted."""
    shape, fingerprint = (*_image_shape(member.shape), 3), fingerprint_files({"": member.path})
    return Source(member.name, shape, space, fingerprint, lambda: numbered(member.blocks()), member.mapped())


def _image_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(B, H, W) of (B, H, W, ...)."""
    return shape[0], shape[1], shape[2]


def _check_labels(name: str, path: Path, labels: np.ndarray, space: FactorSpace) -> None:
    """Labels must run through the grid with the last factor fastest: ascending values are levels 0, 1, ..."""
    grid = space.factors(np.arange(len(space)))
    fits = labels.shape == grid.shape and all(
        np.array_equal(np.unique(labels[:, f], return_inverse=True)[1], grid[:, f]) for f in range(grid.shape[1])
    )
    if not fits:
        raise DataError(
            f"{name}: labels {labels.shape} in {path} do not run through the grid {space.sizes} with the last factor "
            "fastest: use the official file, unshuffled"
        )
