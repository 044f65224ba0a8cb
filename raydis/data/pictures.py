"""Read a folder of pictures, such as photographs of faces or frames of a video, as a data set without factors.

B batch, H W C image.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import numpy as np

from raydis.data.cache import fingerprint_files
from raydis.data.dataset import Labels, digest
from raydis.data.decode import FORMATS, SUFFIXES, begins_as_picture, decode_picture
from raydis.data.folder import FileKind, counted, find_files, name_all, report_skipped, shown
from raydis.data.signature import signature
from raydis.data.source import Source
from raydis.errors import DataError, PictureError, UnknownPicture

DECODER = 2  # increased whenever the same files give other images; 2: transparent pictures are laid over grey
MAX_FILE_BYTES = 1 << 30


def may_be_picture(name: str) -> bool:
    """Return whether a file may be a picture by its suffix. Without one (`IMG.0001`), the first bytes decide later."""
    suffix = PurePosixPath(name).suffix.lower()
    return suffix in SUFFIXES or _tells_nothing(suffix)


PICTURES = FileKind("pictures", may_be_picture)


def read_image_folder(folder: Path, image_size: int) -> Source:
    """Read all pictures below a folder, in the order of their relative names, as RGB squares.

    Pictures are the files whose suffix is one of SUFFIXES, whatever their format, and files without a suffix that have
    the header of a picture. Hidden files are skipped, and links to folders are followed; see `find_files`.

    Raises:
        DataError: no such folder, or no picture in it. Pictures that `decode_picture` refuses raise it when they are
            decoded.
    """
    files, skipped = find_files("image_folder", folder, PICTURES)
    for name in [name for name in files if _tells_nothing(PurePosixPath(name).suffix)]:
        if not begins_as_picture(files[name]):
            del files[name]
            skipped["without suffix"] += 1
    if not files:
        found = f"skipped: {counted(skipped)}" if skipped else "it is empty"
        raise DataError(
            f"image_folder: no picture below {shown(folder)} ({found}): set data.path to a folder of pictures "
            f"({', '.join(FORMATS)})"
        )
    report_skipped("image_folder", folder, PICTURES, len(files), skipped)

    return picture_source("image_folder", folder, files, image_size)


def picture_source(
    name: str,
    folder: Path,
    files: Mapping[str, Path],
    image_size: int,
    *,
    labels: Labels | None = None,
) -> Source:
    """Return the pictures in files, as RGB squares in the order of the mapping.

    Args:
        name: of the data set.
        folder: for messages.
        files: by the names that messages call them by.
        labels: the factors of the pictures, if they are known.
    """
    fingerprint = fingerprint_files(files)
    if labels is not None:
        levels = hashlib.sha256(labels.levels.tobytes()).hexdigest()
        fingerprint = digest(files=fingerprint, order=list(files), factors=labels.names, levels=levels)

    def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        broken: dict[str, str] = {}
        for index, (key, path) in enumerate(files.items()):
            try:
                image = _decoded(path, (image_size, image_size, 3))
            except PictureError as error:
                broken[key] = str(error)
            else:
                yield np.array([index]), image[None]
        if broken:
            raise DataError(
                f"{name}: cannot decode {len(broken)} of {len(files)} pictures in {shown(folder)}: "
                f"{name_all(broken)}. Repair or remove them"
            )

    return Source(
        name,
        (len(files), image_size, image_size, 3),
        None,
        fingerprint,
        blocks,
        slow=True,
        decoder=DECODER,
        labels=labels,
    )


def read_picture(path: Path, image_size: int, channels: int = 3) -> np.ndarray:
    """Read one picture as (image_size, image_size, channels) uint8; see `decode_picture`.

    Raises:
        DataError: a missing, damaged or huge picture, or one of more than 8 bits a channel.
    """
    try:
        return _decoded(path, (image_size, image_size, channels))
    except PictureError as error:
        raise DataError(f"cannot decode {shown(path)}: it {error}") from error


def _decoded(path: Path, image_shape: tuple[int, int, int]) -> np.ndarray:
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise PictureError(f"has {size} bytes, more than the limit of {MAX_FILE_BYTES}: use a smaller one")
        with warnings.catch_warnings():
            # Pillow warns about unreadable metadata in TIFF files, which is not needed.
            warnings.simplefilter("ignore", UserWarning)
            return decode_picture(path.read_bytes(), image_shape)
    except UnknownPicture as error:
        found = signature(path)
        raise PictureError(f"is {found}{' with a damaged beginning' if found.endswith('picture') else ''}") from error
    except OSError as error:
        raise PictureError(f"cannot be read ({error.strerror or error})") from error


def _tells_nothing(suffix: str) -> bool:
    return not suffix or suffix[1:].isdigit()
