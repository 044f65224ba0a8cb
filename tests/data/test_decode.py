from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raydis.data.decode import BACKGROUND, FORMATS, decode_picture
from raydis.errors import PictureError, TooManyPixels, UnknownPicture

SHAPE = (16, 16, 3)
PIXELS = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)


def file_of(picture: Image.Image | np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes, crc: int | None = None) -> bytes:
    crc = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def with_chunk(inserted: bytes, before_pixels: bool = True) -> bytes:
    """PIXELS as a PNG file with one chunk more."""
    data = file_of(PIXELS)
    position = 33 if before_pixels else len(data) - 12  # behind IHDR, or before IEND
    return data[:position] + inserted + data[position:]


METADATA = {
    "text of 3 MB": chunk(b"zTXt", b"comment\0\0" + zlib.compress(bytes(3_000_000))),
    "international text of 3 MB": chunk(b"iTXt", b"k\0\1\0\0\0" + zlib.compress(bytes(3_000_000))),
    "much plain text": chunk(b"tEXt", b"comment\0" + b"x" * 3_000_000),
    "a bomb of text": chunk(b"zTXt", b"comment\0\0" + zlib.compress(bytes(200_000_000), 9)),
    "text that is not compressed": chunk(b"zTXt", b"comment\0\0not zlib"),
    "a colour profile of 3 MB": chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(3_000_000))),
    "a broken colour profile": chunk(b"iCCP", b"profile\0\0not zlib"),
    "a colour profile without a name": chunk(b"iCCP", b"x"),
    "broken EXIF": chunk(b"eXIf", b"II*\0\xff\xff\xff\xff"),
    "EXIF that is none": chunk(b"eXIf", b"no EXIF"),
    "a gamma cut short": chunk(b"gAMA", b"\0"),
    "a resolution cut short": chunk(b"pHYs", b"\0"),
    "a colour space cut short": chunk(b"cHRM", b"\0"),
    "an intent cut short": chunk(b"sRGB", b""),
    "an animation of no frames": chunk(b"acTL", bytes(8)),
    "a checksum that is wrong": chunk(b"tEXt", b"k\0v", crc=1),
    "a private chunk": chunk(b"prVt", b"x" * 100, crc=7),
}


@pytest.mark.parametrize("before_pixels", [True, False])
@pytest.mark.parametrize("metadata", METADATA)
def test_broken_metadata_refuses_no_png_whose_pixels_are_sound(metadata: str, before_pixels: bool) -> None:
    np.testing.assert_array_equal(decode_picture(with_chunk(METADATA[metadata], before_pixels), SHAPE), PIXELS)


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


SEGMENTS = {
    "broken EXIF": segment(0xE1, b"Exif\0\0MM\0*\xff\xff\xff\xff"),
    "EXIF that is none": segment(0xE1, b"Exif\0\0nothing"),
    "a list of pictures that is none": segment(0xE2, b"MPF\0II*\0\xff\xff\xff\xff"),
    "half a colour profile": segment(0xE2, b"ICC_PROFILE\0\x07\x09half"),
    "a broken Photoshop block": segment(0xED, b"Photoshop 3.0\x008BIM\x03"),
    "Adobe without a version": segment(0xEE, b"Adobe"),
    "JFIF without a version": segment(0xE0, b"JFIF\0"),
    "a comment of bytes": segment(0xFE, bytes(range(256))),
}


@pytest.mark.parametrize("metadata", SEGMENTS)
def test_broken_metadata_refuses_no_jpeg_whose_pixels_are_sound(metadata: str) -> None:
    data = file_of(PIXELS, "JPEG")
    expected = np.asarray(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(decode_picture(data[:2] + SEGMENTS[metadata] + data[2:], SHAPE), expected)


@pytest.mark.parametrize("exif", [b"Exif\0\0MM\0*\xff\xff\xff\xff", b"no EXIF", b"\x9cM\0*\0\0\0\x08"])
def test_broken_exif_refuses_no_webp_whose_pixels_are_sound(exif: bytes) -> None:
    data = file_of(PIXELS, "WEBP", lossless=True, exif=exif, icc_profile=b"none")
    np.testing.assert_array_equal(decode_picture(data, SHAPE), PIXELS)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("value", range(1, 9))
def test_a_picture_is_turned_as_pillow_turns_it(kind: str, value: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    quarters = np.zeros((16, 16, 3), np.uint8)
    quarters[:8, :8], quarters[:8, 8:], quarters[8:, :8] = 80, 160, 240
    options = {"quality": 100} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    turns = {
        1: quarters,
        2: quarters[:, ::-1],
        3: quarters[::-1, ::-1],
        4: quarters[::-1],
        5: quarters.swapaxes(0, 1),
        6: np.rot90(quarters, -1),
        7: quarters[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(quarters),
    }
    found = decode_picture(file_of(quarters, kind, exif=exif.tobytes(), **options), SHAPE)
    assert np.abs(found.astype(int) - turns[value]).max() <= 2


def with_alpha(hidden: int) -> np.ndarray:
    """PIXELS with a left half that is fully transparent, in which a colour hides, and a row of half transparency."""
    pixels = np.dstack([PIXELS, np.full((16, 16), 255, np.uint8)])
    pixels[:, :8, :3], pixels[:, :8, 3] = hidden, 0
    pixels[0, 8:, 3] = 128
    return pixels


def test_transparent_pixels_are_laid_over_the_background_and_hidden_colours_do_not_count() -> None:
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})):
        images = [decode_picture(file_of(with_alpha(hidden), kind, **options), SHAPE) for hidden in (0, 90, 255)]
        assert (images[0][:, :8] == BACKGROUND).all()
        np.testing.assert_array_equal(images[0][1:, 8:], PIXELS[1:, 8:])
        blended = (PIXELS[0, 8:].astype(float) * 128 + 128 * 127) / 255
        assert np.abs(images[0][0, 8:] - blended).max() <= 1
        np.testing.assert_array_equal(images[1], images[0])
        np.testing.assert_array_equal(images[2], images[0])


def test_hidden_colours_do_not_shine_through_when_a_picture_is_scaled() -> None:
    one, two = (with_alpha(hidden).repeat(5, axis=0).repeat(5, axis=1) for hidden in (0, 255))
    np.testing.assert_array_equal(decode_picture(file_of(one), SHAPE), decode_picture(file_of(two), SHAPE))


def grey_and_alpha() -> bytes:
    pixels = np.full((16, 16, 2), 200, np.uint8)
    pixels[:, :8, 1], pixels[:, 8:, 1] = 0, 255
    return file_of(Image.merge("LA", [Image.fromarray(pixels[..., i]) for i in (0, 1)]))


def grey_with_a_transparent_level() -> bytes:
    pixels = np.full((16, 16), 200, np.uint8)
    pixels[:, :8] = 9
    return file_of(pixels, transparency=9)


def colours_with_a_transparent_one() -> bytes:
    pixels = np.full((16, 16, 3), 200, np.uint8)
    pixels[:, :8] = (9, 8, 7)
    return file_of(pixels, transparency=(9, 8, 7))


def palette_with_alpha() -> bytes:
    picture = Image.new("P", (16, 16), 1)
    picture.putpalette([9, 8, 7, 200, 200, 200])
    picture.paste(0, (0, 0, 8, 16))
    return file_of(picture, transparency=bytes([0, 255]))


def palette_with_a_transparent_colour() -> bytes:
    picture = Image.new("P", (16, 16), 1)
    picture.putpalette([9, 8, 7, 200, 200, 200])
    picture.paste(0, (0, 0, 8, 16))
    return file_of(picture, "GIF", transparency=0)


def bits_with_a_transparent_one() -> bytes:
    """One bit a pixel: white is 255, black is transparent."""
    picture = Image.new("1", (16, 16), 1)
    picture.paste(0, (0, 0, 8, 16))
    return file_of(picture, transparency=0)


def deep_colours_with_a_transparent_one() -> bytes:
    """16 bits a channel, of which Pillow reads the upper 8."""
    row = b"\0" + struct.pack(">3H", 0x0901, 0x0802, 0x0703) * 8 + struct.pack(">3H", 0xC8C8, 0xC8C8, 0xC8C8) * 8
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0))
    transparent = chunk(b"tRNS", struct.pack(">3H", 0x0901, 0x0802, 0x0703))
    return b"\x89PNG\r\n\x1a\n" + header + transparent + chunk(b"IDAT", zlib.compress(row * 16)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "make",
    [
        grey_and_alpha,
        grey_with_a_transparent_level,
        colours_with_a_transparent_one,
        palette_with_alpha,
        palette_with_a_transparent_colour,
        bits_with_a_transparent_one,
        deep_colours_with_a_transparent_one,
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_of_transparency_shows_the_background(make: Callable[[], bytes], channels: int) -> None:
    image = decode_picture(make(), (16, 16, channels))
    assert (image[:, :8] == BACKGROUND[0]).all()
    assert np.isin(image[:, 8:], (200, 255)).all()


def test_a_picture_without_transparency_keeps_its_pixels() -> None:
    opaque = np.dstack([PIXELS, np.full((16, 16), 255, np.uint8)])
    np.testing.assert_array_equal(decode_picture(file_of(opaque), SHAPE), PIXELS)
    palette = Image.fromarray(PIXELS).quantize(16)
    np.testing.assert_array_equal(decode_picture(file_of(palette), SHAPE), np.asarray(palette.convert("RGB")))


def test_only_the_formats_that_were_asked_for_are_read() -> None:
    with pytest.raises(UnknownPicture):
        decode_picture(file_of(PIXELS, "BMP"), SHAPE, formats=("PNG", "JPEG"))
    for data in (b"", b"no picture", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"):
        with pytest.raises(UnknownPicture):
            decode_picture(data, SHAPE)
    assert "EPS" not in FORMATS  # Pillow has Ghostscript run it


def test_a_format_that_this_pillow_lacks_is_no_picture() -> None:
    with pytest.raises(UnknownPicture):
        decode_picture(b"\0\0\0\x20ftypheic" + bytes(50), SHAPE, formats=("PNG", "HEIC"))


def test_a_picture_of_too_many_pixels_is_refused_by_its_header() -> None:
    with pytest.raises(TooManyPixels, match=r"has 16 x 16 pixels, more than the limit of 255"):
        decode_picture(file_of(PIXELS), SHAPE, max_pixels=255)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM", "JPEG2000", "PCX", "QOI", "SGI", "AVIF"])
def test_damaged_files_decode_or_are_refused_and_raise_nothing_else(kind: str) -> None:
    rng = np.random.default_rng(1)
    try:
        whole = np.frombuffer(file_of(PIXELS, kind), np.uint8)
    except (KeyError, OSError):  # this build of Pillow does not write it
        whole = np.frombuffer(b"qoif" + bytes(200), np.uint8)
    refused = 0
    for _ in range(200):
        damaged = whole.copy()
        damaged[rng.integers(0, min(len(whole), 400), 6)] = rng.integers(0, 256, 6)
        try:
            assert decode_picture(damaged.tobytes(), SHAPE).shape == SHAPE
        except PictureError:
            refused += 1
        for length in rng.integers(0, len(whole), 1):
            try:
                decode_picture(whole[:length].tobytes(), SHAPE)
            except PictureError:
                refused += 1
    assert refused > 20


def test_the_cases_of_strangers_decode(shared_data: Path) -> None:
    cases = shared_data.parent / "cases" / "files"
    black, hidden = (decode_picture((cases / f"alpha_{name}.png").read_bytes(), SHAPE) for name in ("black", "hidden"))
    np.testing.assert_array_equal(black, hidden)
    for name in ("png_exif_bad", "png_text_3mb"):
        assert decode_picture((cases / f"{name}.png").read_bytes(), SHAPE).shape == SHAPE
