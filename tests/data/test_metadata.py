from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from raydis.data.metadata import orientation, without_metadata

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)


def file_of(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def chunk(kind: bytes, data: bytes, crc: int | None = None) -> bytes:
    return (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) if crc is None else crc)
    )


def exif_of(value: int) -> bytes:
    exif = Image.Exif()
    exif[0x010E] = "a description"
    exif[0x0112] = value
    return exif.tobytes()


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_the_pixels_stay_and_the_rest_goes(kind: str) -> None:
    data = file_of(kind, exif=exif_of(6), icc_profile=bytes(5000), comment=b"by nobody")
    bare, exif = without_metadata(data)
    np.testing.assert_array_equal(decoded(bare), decoded(data))
    assert len(bare) < len(data) - 5000 * (kind == "JPEG")  # PNG compresses a profile
    assert not {"exif", "icc_profile", "comment"} & set(Image.open(io.BytesIO(bare)).info)
    assert orientation(exif) == 6


def test_transparency_is_no_metadata() -> None:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).quantize(8).save(buffer, "PNG", transparency=bytes([0, 128]))
    bare, _ = without_metadata(buffer.getvalue())
    assert Image.open(io.BytesIO(bare)).info["transparency"] == bytes([0, 128])


@pytest.mark.parametrize("mode", ["CMYK", "L", "RGB"])
def test_colour_spaces_of_jpeg_survive(mode: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(buffer, "JPEG", exif=exif_of(1))
    bare, _ = without_metadata(buffer.getvalue())
    np.testing.assert_array_equal(decoded(bare), decoded(buffer.getvalue()))


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "WEBP"])
def test_other_files_stay_as_they_are(kind: str) -> None:
    assert without_metadata(file_of(kind)) == (file_of(kind), b"")
    assert without_metadata(b"") == (b"", b"")


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_file_cut_anywhere_gains_nothing(kind: str) -> None:
    data = file_of(kind, exif=exif_of(6), comment=b"by nobody")
    for length in range(len(data)):
        bare, _ = without_metadata(data[:length])
        assert len(bare) <= length


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("value", range(1, 9))
def test_the_orientation_is_read_in_either_byte_order(order: str, value: int) -> None:
    mark = b"II" if order == "<" else b"MM"
    entries = struct.pack(f"{order}HHIHH", 0x0100, 3, 1, 9, 0) + struct.pack(f"{order}HHIHH", 0x0112, 3, 1, value, 0)
    block = mark + struct.pack(f"{order}HIH", 42, 8, 2) + entries
    assert orientation(block) == orientation(b"Exif\0\0" + block) == value
    long = mark + struct.pack(f"{order}HIH", 42, 8, 1) + struct.pack(f"{order}HHII", 0x0112, 4, 1, value)
    assert orientation(long) == value


def test_exif_that_cannot_be_read_leaves_a_picture_as_it_is() -> None:
    assert orientation(b"") == orientation(b"Exif\0\0") == orientation(b"II*") == orientation(b"XX*\0" + bytes(50)) == 1
    whole = exif_of(6)
    assert [orientation(whole[:length]) for length in range(len(whole) + 1)].count(1) > 20
    far = b"II*\0" + struct.pack("<I", 0xFFFFFFF0)
    many = b"II*\0" + struct.pack("<IH", 8, 65535) + bytes(12)
    assert orientation(far) == orientation(many) == 1
    assert orientation(exif_of(9)) == orientation(exif_of(0)) == 1


def test_random_exif_raises_nothing() -> None:
    rng = np.random.default_rng(0)
    whole = np.frombuffer(exif_of(6), np.uint8)
    for _ in range(2000):
        damaged = whole.copy()
        damaged[rng.integers(0, len(whole), 4)] = rng.integers(0, 256, 4)
        assert 1 <= orientation(damaged.tobytes()) <= 8
