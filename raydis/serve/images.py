"""Untrusted bytes to model-sized pixels, and pixels to PNG.

H W C image. The format is read from the bytes, never from what the client calls them.
"""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps

from raydis.errors import RaydisError

FORMATS = ("PNG", "JPEG", "WEBP")
MEDIA_TYPES = ("image/png", "image/jpeg", "image/webp")
MAX_BODY_BYTES = 10 * 1024 * 1024
MAX_PIXELS = 4096 * 4096

# What Pillow 11 to 13 raises on damaged files of these formats; tests/serve/test_images.py damages many.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error)


class ImageError(RaydisError):
    """The bytes are no image that can be used."""


class ImageTooLarge(RaydisError):
    """The image is one, but has too many pixels to be decoded."""


def decode_image(data: bytes, image_shape: tuple[int, int, int], *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """One image as the model takes it, prepared as `raydis.data.pictures` prepares training images.

    Turned upright by its EXIF tag, scaled so that its shorter side fits, cropped to its centre; RGB or grey. Of an
    animation the first frame is taken, and transparency is dropped. The size is read from the header, and refused,
    before any pixel is decoded.

    Args:
        data: a PNG, JPEG or WebP file.
        image_shape: (H, W, C) of the model, C = 1 or 3.
        max_pixels: largest width * height that is decoded.

    Returns:
        (H, W, C) uint8.

    Raises:
        ImageError: not one of these formats, damaged, truncated, or grey of more than 8 bits.
        ImageTooLarge: more than `max_pixels`.
    """
    height, width, channels = image_shape
    mode = "RGB" if channels == 3 else "L"
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise _too_large(f"{image.width} x {image.height} pixels", max_pixels)
            if image.mode[0] in "IF":
                raise ImageError(f"the image has mode {image.mode}: convert it to 8 bits a channel")
            image.draft(mode, (2 * width, 2 * height))  # lets JPEG decode at a fraction of its size
            upright = ImageOps.exif_transpose(image)
            if upright.mode == "P":  # a palette may hold transparency, which only RGBA takes without a warning
                upright = upright.convert("RGBA")
            pixels = ImageOps.fit(upright.convert(mode), (width, height), Image.Resampling.LANCZOS)
            return np.asarray(pixels, dtype=np.uint8).reshape(image_shape)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # Pillow's own limit came first
        raise _too_large("far too many pixels", max_pixels) from error
    except Image.UnidentifiedImageError as error:
        raise ImageError("the bytes are not a PNG, JPEG or WebP image") from error
    except _DAMAGED as error:
        raise ImageError(f"the image is damaged or truncated: {error}") from error


def encode_png(pixels: np.ndarray) -> bytes:
    """A PNG file of (H, W, C) uint8, C = 1 or 3."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _too_large(what: str, max_pixels: int) -> ImageTooLarge:
    return ImageTooLarge(f"the image has {what}, more than the {max_pixels} that are decoded: send a smaller one")
