from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raydis.data.pictures import read_picture
from raydis.serve.images import ImageError, ImageTooLarge, decode_image, encode_png

FileOf = Callable[..., bytes]
SHAPE = (16, 16, 3)


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header claims a size, with next to no pixel data behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def test_an_image_of_the_models_size_keeps_every_pixel(picture: np.ndarray, file_of: FileOf) -> None:
    pixels = picture[:16, :16]
    assert np.array_equal(decode_image(file_of(pixels), SHAPE), pixels)
    assert np.array_equal(decode_image(file_of(pixels, "WEBP", lossless=True), SHAPE), pixels)


def test_a_png_round_trip_keeps_every_pixel_in_colour_and_in_grey(picture: np.ndarray) -> None:
    for pixels in (picture[:16, :16], picture[:16, :16, :1]):
        assert np.array_equal(decode_image(encode_png(pixels), pixels.shape), pixels)


def test_a_wide_image_is_cropped_to_its_centre(file_of: FileOf) -> None:
    wide = np.zeros((16, 48, 3), np.uint8)
    wide[:, 16:32] = 200
    assert (decode_image(file_of(wide), SHAPE) == 200).all()


def test_a_photograph_is_turned_upright_by_its_exif_tag(file_of: FileOf) -> None:
    left_white = np.zeros((16, 16, 3), np.uint8)
    left_white[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: left becomes top
    upright = decode_image(file_of(left_white, exif=exif), SHAPE)
    assert (upright[:8] == 255).all()
    assert (upright[8:] == 0).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "RGB"])
def test_every_8_bit_png_becomes_what_the_model_takes(mode: str) -> None:
    image = Image.new(mode, (20, 20))
    if mode == "P":
        image.info["transparency"] = bytes([0, 128])
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    assert decode_image(buffer.getvalue(), (16, 16, 3)).shape == (16, 16, 3)
    assert decode_image(buffer.getvalue(), (16, 16, 1)).shape == (16, 16, 1)


def test_a_16_bit_grey_image_is_refused_rather_than_clipped(file_of: FileOf) -> None:
    with pytest.raises(ImageError, match="mode I;16: convert it to 8 bits"):
        decode_image(file_of(np.full((16, 16), 40_000, np.uint16)), SHAPE)


@pytest.mark.parametrize("data", [b"", b"hello", b"<svg/>", b"GIF89a" + bytes(100)])
def test_bytes_of_another_format_are_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match="not a PNG, JPEG or WebP image"):
        decode_image(data, SHAPE)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_truncated_file_is_refused(kind: str, picture: np.ndarray, file_of: FileOf) -> None:
    data = file_of(picture, kind)
    with pytest.raises(ImageError, match="damaged or truncated"):
        decode_image(data[: len(data) // 2], SHAPE)


def test_a_large_image_is_refused_by_its_header_before_its_pixels_are_decoded() -> None:
    with pytest.raises(ImageTooLarge, match="5000 x 5000 pixels, more than the limit of 16777216"):
        decode_image(png_of_size(5000, 5000), SHAPE)  # decoding it would fail: it has no pixels


def test_a_decompression_bomb_is_refused_by_pillows_own_limit_too() -> None:
    with pytest.raises(ImageTooLarge, match="far too many pixels"):
        decode_image(png_of_size(100_000, 100_000), SHAPE)


def test_a_text_chunk_that_inflates_is_left_unread(file_of: FileOf) -> None:
    text = b"comment\0\0" + zlib.compress(bytes(20_000_000))
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    data = file_of(np.full((16, 16, 3), 9, np.uint8))
    assert (decode_image(data[:33] + chunk + data[33:], SHAPE) == 9).all()


def test_an_upload_becomes_what_the_same_file_becomes_in_training(tmp_path: Path, picture: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    transparent = np.dstack([picture, np.arange(1600, dtype=np.uint16).reshape(40, 40).astype(np.uint8)])
    for kind in ("PNG", "WEBP"):
        Image.fromarray(transparent).save(tmp_path / "a", kind, exif=exif.tobytes())
        upload = decode_image((tmp_path / "a").read_bytes(), SHAPE)
        np.testing.assert_array_equal(upload, read_picture(tmp_path / "a", 16))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_damaged_files_decode_or_are_refused_and_raise_nothing_else(
    kind: str, picture: np.ndarray, file_of: FileOf
) -> None:
    rng = np.random.default_rng(1)
    exif = Image.Exif()
    exif[0x0112] = 3
    original = np.frombuffer(file_of(picture, kind, exif=exif), np.uint8)
    refused = 0
    for _ in range(400):
        data = original.copy()
        where = rng.integers(0, len(data), rng.integers(1, 9))
        data[where] = rng.integers(0, 256, len(where))
        try:
            assert decode_image(data.tobytes(), SHAPE).shape == SHAPE
        except (ImageError, ImageTooLarge):
            refused += 1
    assert refused > 20
