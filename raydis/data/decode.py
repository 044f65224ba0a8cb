"""Decode a picture file to the pixels that a model takes, for training images, the command line and uploads alike.

H W C image. The format is recognised by the bytes, never by the name of the file.
"""

from __future__ import annotations

import functools
import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from raydis.data.metadata import JPEG_SIGNATURE, PNG_SIGNATURE, orientation, without_metadata
from raydis.errors import PictureError, TooManyPixels, UnknownPicture

BACKGROUND = (128, 128, 128)  # colour behind transparent pixels: the middle of the range, about 0 for a model
MAX_PIXELS = 64_000_000  # per picture; larger pictures are refused before they are decoded

# Common formats that begin with a signature. EPS is left out because Pillow would start another program for it.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000", "DIB", "PCX", "QOI", "SGI")
SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".avifs", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    *(".pcx", ".qoi", ".sgi", ".rgb", ".rgba", ".bw"),
)

# The exceptions of Pillow 11 to 13 for damaged files; tests/data/test_decode.py damages many files.
DAMAGED = (
    *(OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, RuntimeError),
    *(struct.error, zlib.error),
)
_TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_picture(
    data: bytes,
    image_shape: tuple[int, int, int],
    *,
    formats: Sequence[str] = FORMATS,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Decode one picture to the image shape of a model.

    The picture is turned upright by its EXIF tag, laid over BACKGROUND where it is transparent, scaled so that its
    shorter side fits, cropped to its centre, and converted to RGB or grey. Of an animation, the first frame is used.
    Other metadata is ignored, so that errors in it do no harm. The size is read from the header and checked before any
    pixel is decoded.

    Args:
        data: the picture's file.
        image_shape: (H, W, C), C = 1 or 3.
        formats: Pillow's names of the allowed formats.
        max_pixels: largest width * height that is decoded.

    Returns:
        (H, W, C) uint8.

    Raises:
        UnknownPicture: the bytes have none of the formats.
        TooManyPixels: more than `max_pixels`.
        PictureError: damaged, truncated, or more than 8 bits a channel, which Pillow would clip instead of scaling.
    """
    bare, exif = without_metadata(data)
    try:
        with Image.open(io.BytesIO(bare), formats=_known(tuple(formats))) as picture:
            if picture.width * picture.height > max_pixels:
                raise _too_many(f"{picture.width} x {picture.height} pixels", max_pixels)
            if picture.mode[0] in "IF":
                raise PictureError(f"has mode {picture.mode}: convert it to 8 bits a channel")
            return _fit(picture, orientation(exif or picture.info.get("exif", b"")), image_shape)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # beyond Pillow's own limit
        raise _too_many("far too many pixels", max_pixels) from error
    except Image.UnidentifiedImageError as error:
        raise UnknownPicture("is no picture that can be read") from error
    except DAMAGED as error:
        found = " ".join(str(error).split()) or type(error).__name__
        raise PictureError(f"is damaged or truncated ({found})") from error


def begins_as_picture(path: Path) -> bool:
    """Return whether a file has the header of one of FORMATS, even if the rest is damaged. Raise OSError."""
    with path.open("rb") as file:
        if file.read(len(PNG_SIGNATURE)).startswith((PNG_SIGNATURE, JPEG_SIGNATURE)):
            return True  # whatever Pillow thinks of their metadata
        try:
            Image.open(file, formats=_known(FORMATS)).close()
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            return True
        except DAMAGED:
            return False
    return True


def opaque(picture: Image.Image) -> Image.Image:
    """Lay a picture with transparency over BACKGROUND, so that the colours of invisible pixels do not matter."""
    if not picture.has_transparency_data:
        return picture
    colour = picture.info.get("transparency")
    if isinstance(colour, tuple) and max(colour) > 255:  # 16 bits, while Pillow keeps the upper 8 of each pixel
        picture.info["transparency"] = tuple(channel >> 8 for channel in colour)
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, BACKGROUND), picture)


def _fit(picture: Image.Image, turned: int, image_shape: tuple[int, int, int]) -> np.ndarray:
    height, width, channels = image_shape
    mode = "RGB" if channels == 3 else "L"
    picture.draft(mode, (2 * width, 2 * height))  # lets JPEG decode at a fraction of its size
    picture.load()
    upright = opaque(picture)
    if turned in _TURNED:
        upright = upright.transpose(_TURNED[turned])
    pixels = ImageOps.fit(upright.convert(mode), (width, height), Image.Resampling.LANCZOS)
    return np.asarray(pixels, dtype=np.uint8).reshape(image_shape)


@functools.cache
def _known(formats: tuple[str, ...]) -> tuple[str, ...]:
    """Return the formats that this build of Pillow supports. AVIF came with version 11.3."""
    Image.init()
    return tuple(name for name in formats if name in Image.OPEN)


def _too_many(found: str, max_pixels: int) -> TooManyPixels:
    return TooManyPixels(f"has {found}, more than the limit of {max_pixels}: use a smaller one")
