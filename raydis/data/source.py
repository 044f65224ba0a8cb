"""The images in the files of a data set (`Source`), and their conversion to an array of the wanted size (`load`).

B batch, H W C image.
"""

from __future__ import annotations

import contextlib
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from raydis.data.cache import RAM_BYTES, made_array
from raydis.data.dataset import ArrayDataset, Labels, digest
from raydis.data.space import FactorSpace
from raydis.errors import DataError

# The exceptions of NumPy, zipfile, h5py and SciPy for files that they cannot read.
UNREADABLE = (
    *(OSError, EOFError, ValueError, TypeError, RuntimeError, IndexError),
    *(struct.error, zlib.error, zipfile.BadZipFile),
)


@dataclass(frozen=True)
class Source:
    """The images in the files of a data set.

    Args:
        name: of the data set, as in DataConfig.name.
        shape: (B, H, W, C) of all images as `blocks` yields them.
        space: grid of the factors, or None.
        fingerprint: digest of the files.
        blocks: function that iterates over all images once, as pairs of indices (b,) and images uint8 (b, H, W, C).
        mapped: all images, memory-mapped in the file, if the file stores them uncompressed; else None.
        slow: whether decoding is so slow that the result is cached whatever its size.
        decoder: version of the reader, increased whenever the same files give other images.
        labels: the factors of images that fill no grid, or None.
    """

    name: str
    shape: tuple[int, int, int, int]
    space: FactorSpace | None
    fingerprint: str
    blocks: Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]]
    mapped: np.ndarray | None = None
    slow: bool = False
    decoder: int = 1
    labels: Labels | None = None


def load(
    source: Source, *, image_size: int, levels: Mapping[str, int | Sequence[int]], cache_dir: Path
) -> ArrayDataset:
    """Return the images of a source at `image_size`, restricted to a sub-grid.

    If the file stores the images uncompressed at this size, they are memory-mapped there. Otherwise they are decoded
    and resized once: into RAM if all images of the source take at most RAM_BYTES (and the source is not `slow`), else
    into an .npy file in the cache.

    Raises:
        DataError: levels that the grid does not have, damaged files, or no room for the cache.
    """
    length, height, width, channels = source.shape
    if source.mapped is not None and (height, width) == (image_size, image_size):
        origin = digest(name=source.name, files=source.fingerprint, image_size=image_size, decoder=source.decoder)
        dataset = ArrayDataset(source.name, source.mapped, source.space, fingerprint=origin)
        return dataset.subgrid(levels) if levels else dataset

    space, rows, kept = source.space, np.arange(length), None
    if levels:
        if space is None:
            raise DataError(f"{source.name} has no grid of factors, so it has no sub-grid: remove data.levels")
        kept = [level.tolist() for level in space.kept_levels(levels)]
        space, rows = space.subspace(levels), space.rows(levels)
    fingerprint = digest(
        name=source.name, files=source.fingerprint, image_size=image_size, decoder=source.decoder, kept=kept
    )
    shape = (len(rows), image_size, image_size, channels)

    def fill(out: np.ndarray) -> None:
        _copy_rows(source, rows, out)

    worth_caching = source.slow or math.prod(source.shape) > RAM_BYTES
    path = cache_dir / f"{source.name}-{fingerprint[:16]}.npy"
    array = made_array(path, shape, fill, ram_bytes=0 if worth_caching else RAM_BYTES)
    return ArrayDataset(source.name, array, space, fingerprint=fingerprint, labels=source.labels)


def numbered(blocks: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield consecutive blocks of images with their indices."""
    start = 0
    for block in blocks:
        yield np.arange(start, start + len(block)), block
        start += len(block)


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """Resize uint8 (B, H, W, C) to (B, size, size, C): bilinear, averaging over the area of an output pixel."""
    if images.shape[1:3] == (size, size):
        return images
    pixels = torch.from_numpy(images.astype(np.float32)).permute(0, 3, 1, 2)
    pixels = torch.nn.functional.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
    return pixels.round_().clamp_(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()


@contextlib.contextmanager
def reading(name: str, path: Path) -> Iterator[None]:
    """Turn the exceptions of decoders for a missing, truncated or damaged file into a DataError."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{name}: no file {path}: correct data.path or download the official file") from error
    except UNREADABLE as error:
        raise DataError(f"{name}: {path} {problem(error)}") from error


def problem(error: BaseException) -> str:
    """Describe what is wrong with a file by its decoder's exception. The phrase completes a sentence "FILE ..."."""
    found = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.errno is not None:  # raised by the system, not by a decoder
        return f"cannot be read ({error.strerror or found})"
    if isinstance(error, EOFError) or "truncated" in found.lower():
        return f"is truncated ({found}): download it again"
    return f"is damaged ({found}): replace it with a sound copy"


def _copy_rows(source: Source, rows: np.ndarray, out: np.ndarray) -> None:
    """Write the images at `rows` to `out`, resized."""
    place = np.full(source.shape[0], -1)
    place[rows] = np.arange(len(rows))
    for indices, images in source.blocks():
        wanted = place[indices] >= 0
        if wanted.any():
            out[place[indices[wanted]]] = resize(images[wanted], out.shape[1])
