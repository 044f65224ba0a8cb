"""A data set's files as a stream of images, and the way from there to an array.

Letters: B batch, H W C image.
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
from raydis.data.dataset import ArrayDataset, digest
from raydis.data.space import FactorSpace
from raydis.errors import DataError

# What NumPy, zipfile, h5py and SciPy raise on a file that they cannot read.
UNREADABLE = (
    *(OSError, EOFError, ValueError, TypeError, RuntimeError, IndexError),
    *(struct.error, zlib.error, zipfile.BadZipFile),
)


@dataclass(frozen=True)
class Source:
    """The images of a data set's files, in index order.

    Args:
        name: the set, as in DataConfig.name.
        shape: (B, H, W, C) of all images as the blocks give them.
        space: grid of the factors, or None.
        fingerprint: of the files.
        blocks: starts a pass over all images, each once: pairs of indices (b,) and uint8 (b, H, W, C).
        mapped: all images in place, memory-mapped, where the file holds them uncompressed.
        slow: decoding costs so much that the result is cached whatever its size.
        decoder: version of the reader, raised whenever the same files would become other images.
    """

    name: str
    shape: tuple[int, int, int, int]
    space: FactorSpace | None
    fingerprint: str
    blocks: Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]]
    mapped: np.ndarray | None = None
    slow: bool = False
    decoder: int = 1


def load(
    source: Source, *, image_size: int, levels: Mapping[str, int | Sequence[int]], cache_dir: Path
) -> ArrayDataset:
    """The images of a source at `image_size`, restricted to a sub-grid.

    Images that lie in the file as they are wanted are memory-mapped there. Others are decoded and resized once: into
    RAM where the source decodes to at most RAM_BYTES, else into an .npy file of the cache.

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
            raise DataError(f"{source.name} has no factors, so it has no sub-grid: remove data.levels")
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
    return ArrayDataset(source.name, array, space, fingerprint=fingerprint)


def numbered(blocks: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Consecutive blocks of images with their indices."""
    start = 0
    for block in blocks:
        yield np.arange(start, start + len(block)), block
        start += len(block)


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """uint8 (B, H, W, C) -> (B, size, size, C), bilinear, averaging over the area that an output pixel covers."""
    if images.shape[1:3] == (size, size):
        return images
    pixels = torch.from_numpy(images.astype(np.float32)).permute(0, 3, 1, 2)
    pixels = torch.nn.functional.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
    return pixels.round_().clamp_(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()


@contextlib.contextmanager
def reading(name: str, path: Path) -> Iterator[None]:
    """Turn what decoders raise on a missing, truncated or damaged file into one DataError."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{name}: no file {path}: correct data.path or download the official file") from error
    except UNREADABLE as error:
        raise DataError(f"{name}: {path} {problem(error)}") from error


def problem(error: BaseException) -> str:
    """What is wrong with a file, by what its decoder raised; the phrase completes "FILE ..."."""
    found = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.errno is not None:  # of the system, not of a decoder
        return f"cannot be read ({error.strerror or found})"
    if isinstance(error, EOFError) or "truncated" in found.lower():
        return f"is truncated ({found}): download it again"
    return f"is damaged ({found}): replace it with a sound copy"


def _copy_rows(source: Source, rows: np.ndarray, out: np.ndarray) -> None:
    """Writes the images at `rows` to `out`, resized."""
    place = np.full(source.shape[0], -1)
    place[rows] = np.arange(len(rows))
    for indices, images in source.blocks():
        wanted = place[indices] >= 0
        if wanted.any():
            out[place[indices[wanted]]] = resize(images[wanted], out.shape[1])
