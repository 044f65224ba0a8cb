"""Readers of the official files of data sets with known factors: 3D Shapes, dSprites, MPI3D, Cars3D, and sprites.

B batch, F factors, H W C image.

Each reader checks arrays, types, shapes and labels before it decodes any image, and returns a Source. The formats are
those of google-research/disentanglement_lib and of the data sets' own repositories. Nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image
from scipy.io.matlab import MatReadError

from raydis.data.arrays import StoredArray, open_array
from raydis.data.cache import fingerprint_files
from raydis.data.dsprites import DSPRITES
from raydis.data.folder import FileKind, counted, find_files, name_all, report_skipped, shown
from raydis.data.shapes3d import SHAPES3D
from raydis.data.signature import MATLAB5, MATLAB73, signature
from raydis.data.source import UNREADABLE, Source, numbered, problem
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


def read_shapes3d(path: Path, space: FactorSpace = SHAPES3D) -> Source:
    """Read 3D Shapes, `3dshapes.h5` or an .npz: `images` uint8 (B, 64, 64, 3) and `labels` (B, 6).

    Args:
        space: the grid that the labels must enumerate in order.

    Raises:
        DataError: missing or damaged file, other arrays, types or shapes, or labels in another order.
    """
    images = open_array("shapes3d", path, ("images",), "uint8", (len(space), None, None, 3))
    labels = open_array("shapes3d", path, ("labels",), "numbers", (len(space), len(space.sizes)))
    _check_labels("shapes3d", path, labels.read(), space)
    return _images_as_stored(images, space)


def read_dsprites(path: Path, space: FactorSpace = DSPRITES) -> Source:
    """Read dSprites, `dsprites_..._64x64.npz` or `.hdf5`: `imgs` uint8 (B, 64, 64) in {0, 1}, returned as 0 and 255.

    Args:
        space: the grid that the labels must enumerate in order, without their first column, the constant colour.

    Raises:
        DataError: missing or damaged file, other arrays, types or shapes, or labels in another order.
    """
    images = open_array("dsprites", path, ("imgs",), "uint8", (len(space), None, None))
    keys = ("latents_classes", "latents/classes")  # names in the .npz and in the .hdf5 file
    classes = open_array("dsprites", path, keys, "integers", (len(space), 1 + len(space.sizes)))
    _check_labels("dsprites", path, classes.read()[:, 1:], space)

    def blocks() -> Iterator[np.ndarray]:
        for block in images.blocks():
            if block.max(initial=0) > 1:
                raise DataError(f"dsprites: imgs in {path} hold {block.max()}, expected 0 and 1: use the official file")
            yield block[..., None] * np.uint8(255)

    shape = (*_image_shape(images.shape), 1)
    return Source("dsprites", shape, space, fingerprint_files({"": path}), lambda: numbered(blocks()))


def mpi3d_space(length: int) -> FactorSpace:
    """Return the grid of an MPI3D file by its number of images.

    The sets toy, realistic and real have 1,036,800 images, and the complex set has 460,800.

    Raises:
        DataError: any other number.
    """
    if length not in MPI3D_SIZES:
        known = " or ".join(f"{known:,}" for known in MPI3D_SIZES)
        raise DataError(f"mpi3d: found {length:,} images, expected {known}: use the whole official file")
    return FactorSpace(MPI3D_NAMES, MPI3D_SIZES[length])


def read_mpi3d(path: Path) -> Source:
    """Read MPI3D, `mpi3d_*.npz` with `images` uint8 (B, 64, 64, 3), or an .npy file of the same array.

    Raises:
        DataError: missing or damaged file, another array, type or shape, or a number of images that is no MPI3D grid.
    """
    images = open_array("mpi3d", path, ("images", ""), "uint8", (None, None, None, 3))
    return _images_as_stored(images, mpi3d_space(images.shape[0]))


def read_sprites(path: Path) -> Source:
    """Read a grid of sprites from an .npz file.

    Its arrays are `images` uint8 (B, H, W, 3), `factor_names` (F,), `factor_sizes` (F,) and `labels` (B, F).

    Raises:
        DataError: missing or damaged file, other arrays, types or shapes, or labels in another order.
    """
    names = open_array("sprites", path, ("factor_names",), "text", (None,)).read()
    sizes = open_array("sprites", path, ("factor_sizes",), "integers", (len(names),)).read()
    space = FactorSpace(tuple(map(str, names)), tuple(map(int, sizes)))
    images = open_array("sprites", path, ("images",), "uint8", (len(space), None, None, 3))
    labels = open_array("sprites", path, ("labels",), "integers", (len(space), len(names)))
    _check_labels("sprites", path, labels.read(), space)
    return _images_as_stored(images, space)


CARS = FileKind(".mat files", lambda name: name.lower().endswith(".mat"))


def read_cars3d(folder: Path, image_size: int) -> Source:
    """Read Cars3D: a folder with one .mat file per car, each with `im` uint8 (128, 128, 3, 24, 4).

    Images are reduced with Pillow's antialiasing filter, as in disentanglement_lib. The cars are sorted by file name,
    while disentanglement_lib takes the order of the directory. Hidden files are skipped, and links to folders are
    followed; see `find_files`.

    Raises:
        DataError: no such folder, or no .mat file in it. Files of another layout raise it when they are decoded.
    """
    files, skipped = find_files("cars3d", folder, CARS)
    if not files:
        found = f"skipped: {counted(skipped)}" if skipped else "it is empty"
        raise DataError(
            f"cars3d: no .mat file below {shown(folder)} ({found}): set data.path to the folder of the cars' .mat files"
        )
    report_skipped("cars3d", folder, CARS, len(files), skipped)
    space = FactorSpace(("elevation", "azimuth", "object"), (CARS3D_ELEVATIONS, CARS3D_AZIMUTHS, len(files)))

    def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        views = np.arange(CARS3D_ELEVATIONS * CARS3D_AZIMUTHS)
        broken: dict[str, str] = {}
        for car, (name, path) in enumerate(files.items()):
            try:
                images = _read_car(path, image_size)
            except DataError as error:
                broken[name] = str(error)
            else:
                yield views * len(files) + car, images  # the object is the last factor
        if broken:
            raise DataError(
                f"cars3d: cannot read {len(broken)} of {len(files)} .mat files in {shown(folder)}: {name_all(broken)}"
            )

    return Source("cars3d", (len(space), image_size, image_size, 3), space, fingerprint_files(files), blocks)


def _read_car(path: Path, image_size: int) -> np.ndarray:
    """Read the 4*24 views of one car, elevation by elevation: (96, image_size, image_size, 3) uint8.

    Raises:
        DataError: what is wrong with the file, as the end of a sentence that begins with its name.
    """
    try:
        kind = signature(path)
        if kind != MATLAB5:
            advice = ": save it with MATLAB's option -v7" if kind == MATLAB73 else ""
            raise DataError(f"is {kind}, expected {MATLAB5}{advice}")
        content = scipy.io.loadmat(path, variable_names=["im"])
    except (MatReadError, *UNREADABLE) as error:
        raise DataError(problem(error)) from error
    images = content.get("im")
    expected = (CARS3D_PX, CARS3D_PX, 3, CARS3D_AZIMUTHS, CARS3D_ELEVATIONS)
    if images is None or images.shape != expected or images.dtype != np.uint8:
        found = "no variable im" if images is None else f"im of type {images.dtype} and shape {images.shape}"
        raise DataError(f"has {found}, expected im of type uint8 and shape {expected}")
    views = images.transpose(4, 3, 0, 1, 2).reshape(-1, CARS3D_PX, CARS3D_PX, 3)
    size = (image_size, image_size)
    return np.stack([np.asarray(Image.fromarray(view).resize(size, Image.Resampling.LANCZOS)) for view in views])


def _images_as_stored(images: StoredArray, space: FactorSpace) -> Source:
    """Return a source of RGB images that need no conversion, which may be memory-mapped."""
    shape, fingerprint = (*_image_shape(images.shape), 3), fingerprint_files({"": images.file.path})
    return Source(images.name, shape, space, fingerprint, lambda: numbered(images.blocks()), images.mapped())


def _image_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return (B, H, W) of a shape (B, H, W, ...)."""
    return shape[0], shape[1], shape[2]


def _check_labels(name: str, path: Path, labels: np.ndarray, space: FactorSpace) -> None:
    """Raise DataError unless the labels enumerate the grid in order, with the last factor fastest.

    The ascending values of a label are taken as levels 0, 1, ...
    """
    grid = space.factors(np.arange(len(space)))
    fits = labels.shape == grid.shape and all(
        np.array_equal(np.unique(labels[:, f], return_inverse=True)[1], grid[:, f]) for f in range(grid.shape[1])
    )
    if not fits:
        raise DataError(
            f"{name}: labels of shape {labels.shape} in {path} do not run through the grid {space.sizes} "
            "with the last factor fastest: use the official file, unshuffled"
        )
