"""A folder of pictures without factors: photographs, faces, frames.

Letters: B batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from raydis.data.cache import fingerprint_files
from raydis.data.source import Source
from raydis.errors import DataError

SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")
MAX_PIXELS = 64_000_000  # of one picture; larger ones are refused before they are decoded


def read_image_folder(folder: Path, image_size: int) -> Source:
    """All PNG, JPEG and WebP files below a folder in the order of their relative paths, as RGB squares.

    A picture is turned upright by its EXIF tag, scaled so that its shorter side fits, and cropped to its centre.

    Raises:
        DataError: no such folder, no picture in it, or, when it is decoded, a damaged or huge picture.
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


def read_picture(path: Path, image_size: int) -> np.ndarray:
    """One picture as (image_size, image_size, 3) uint8. Raises DataError for a damaged or huge one."""
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise DataError(
                    f"image_folder: {path} has {picture.width}x{picture.height} px, too many: scale it down"
                )
            picture.draft("RGB", (2 * image_size, 2 * image_size))  # lets JPEG decode at a fraction of its size
            upright = ImageOps.exif_transpose(picture).convert("RGB")
            return np.asarray(ImageOps.fit(upright, (image_size, image_size), Image.Resampling.LANCZOS))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"image_folder: cannot decode {path} ({error}): repair or remove it") from error
