"""Decode uploaded image files to pixels of the model's size, and encode pixels as PNG.

H W C image. Uploads are not trusted: the format is read from the bytes, not from the name or the type that the client
states.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from raydis.data.decode import decode_picture
from raydis.errors import ImageError, ImageTooLarge, PictureError, TooManyPixels, UnknownPicture

FORMATS = ("PNG", "JPEG", "WEBP")
MEDIA_TYPES = ("image/png", "image/jpeg", "image/webp")
MAX_BODY_BYTES = 10 * 1024 * 1024
MAX_PIXELS = 4096 * 4096


def decode_image(data: bytes, image_shape: tuple[int, int, int], *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode an image file and bring it to the model's size, as `decode_picture` prepares training images.

    Args:
        data: a PNG, JPEG or WebP file.
        image_shape: (H, W, C) of the model, with C = 1 or 3.
        max_pixels: largest width * height that is decoded.

    Returns:
        (H, W, C) uint8.

    Raises:
        ImageError: the file has another format, is damaged or truncated, or is grey with more than 8 bits.
        ImageTooLarge: it has more than `max_pixels`.
    """
    try:
        return decode_picture(data, image_shape, formats=FORMATS, max_pixels=max_pixels)
    except UnknownPicture as error:
        raise ImageError("the bytes are not a PNG, JPEG or WebP image") from error
    except TooManyPixels as error:
        raise ImageTooLarge(f"the image {error}") from error
    except PictureError as error:
        raise ImageError(f"the image {error}") from error


def encode_png(pixels: np.ndarray) -> bytes:
    """Return (H, W, C) uint8, with C = 1 or 3, as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()
