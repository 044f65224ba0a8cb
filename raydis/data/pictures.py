"""A folder of pictures without factors: photographs, faces, frames.

Letters: B batch, H W C image.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from raydis.data.cache import fingerprint_files
from raydis.data.source import Source
from raydis.errors import DataError

SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")
MAX_PIXELS = 64_000_000  # of one picture; larger ones are refused before they are decoded

# What Pillow 11 to 13 raises on damaged files; tests/serve/test_images.py damages many.
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error)


def read_image_folder(folder: Path, image_size: int) -> Source:
    """All PNG, JPEG and WebP files below a folder in the order of their relative paths, as RGB squares.

    Raises:
        DataError: no such folder, no picture in it, or, when it is decoded, what `read_picture` refuses.
    """
    found = [path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()]
    files = dict(sorted((path.relative_to(folder).as_posix(), path) for path in found))
    if not files:
        raise DataError(f"image_folder: no {', '.join(SUFFIXES)} file below {folder}: set data.path to their folder")
    paths = list(files.values())

    def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for index, path in enumerate(paths):
            yield np.array([index]), read_picture(path, image_size)[None]

    shape = (len(paths), image_size, image_size, 3)
    return Source("image_folder", shape, None, fingerprint_files(files), blocks, slow=True)


def read_picture(path: Path, image_size: int, channels: int = 3) -> np.ndarray:
    """One picture as (image_size, image_size, channels) uint8; see `fit_picture`.

    Raises:
        DataError: a damaged or huge picture, or one of more than 8 bits a channel.
    """
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise DataError(f"{picture.width}x{picture.height} px are too many: scale it down")
            return fit_picture(picture, (image_size, image_size, channels))
    except DataError as error:
        raise DataError(f"image_folder: {path}: {error}") from error
    except (*DAMAGED, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"image_folder: cannot decode {path} ({error}): repair or remove it") from error


def fit_picture(picture: Image.Image, image_shape: tuple[int, int, int]) -> np.ndarray:
    """An opened picture as a model takes it: the one way for training images and for uploads.

    Turned upright by its EXIF tag, scaled so that its shorter side fits, cropped to its centre; RGB or grey. Of an
    animation the first frame is taken, and transparency is dropped.

    Args:
        picture: its size is known, its pixels are decoded here.
        image_shape: (H, W, C), C = 1 or 3.

    Returns:
        (H, W, C) uint8.

    Raises:
        DataError: more than 8 bits a channel, which Pillow would clip instead of scaling.
        one of DAMAGED: a file that Pillow cannot decode.
    """
    height, width, channels = image_shape
    mode = "RGB" if channels == 3 else "L"
    if picture.mode[0] in "IF":
        raise DataError(f"the image has mode {picture.mode}: convert it to 8 bits a channel")
    picture.draft(mode, (2 * width, 2 * height))  # lets JPEG decode at a fraction of its size
    upright = ImageOps.exif_transpose(picture)
    if upright.mode == "P":  # a palette may hold transparency, which only RGBA takes without a warning
        upright = upright.convert("RGBA")
    pixels = ImageOps.fit(upright.convert(mode), (width, height), Image.Resampling.LANCZOS)
    return np.asarray(pixels, dtype=np.uint8).reshape(image_shape)
