"""Untrusted bytes to model-sized pixels, and pixels to PNG.

H W C image. The format is read from the bytes, never from what the client calls them.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from raydis.data.pictures import DAMAGED, fit_picture
from raydis.errors import DataError, ImageError, ImageTooLarge

FORMATS = ("PNG", "JPEG", "WEBP")
MEDIA_TYPES = ("image/png", "image/jpeg", "image/webp")
MAX_BODY_BYTES = 10 * 1024 * 1024
MAX_PIXELS = 4096 * 4096


def decode_image(data: bytes, image_shape: tuple[int, int, int], *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """One image as the model takes it, prepared by `fit_picture` as training images are.

    The size is read from the header, and refused, before any pixel is decoded.

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
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise _too_large(f"{image.width} x {image.height} pixels", max_pixels)
            return fit_picture(image, image_shape)
    except DataError as error:
        raise ImageError(str(error)) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # Pillow's own limit came first
        raise _too_large("far too many pixels", max_pixels) from error
    except Image.UnidentifiedImageError as error:
        raise ImageError("the bytes are not a PNG, JPEG or WebP image") from error
    except DAMAGED as error:
        raise ImageError(f"the image is damaged or truncated: {error}") from error


def encode_png(pixels: np.ndarray) -> bytes:
    """A PNG file of (H, W, C) uint8, C = 1 or 3."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _too_large(what: str, max_pixels: int) -> ImageTooLarge:
    return ImageTooLarge(f"the image has {what}, more than the {max_pixels} that are decoded: send a smaller one")
