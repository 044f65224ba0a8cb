from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raydis.data.pictures import read_image_folder, read_picture
from raydis.data.source import load
from raydis.errors import DataError


def save(path: Path, colour: tuple[int, ...], size: tuple[int, int] = (20, 20), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour if mode != "L" else colour[0]).save(path)


def test_pictures_are_read_in_the_order_of_their_relative_paths(tmp_path: Path) -> None:
    save(tmp_path / "b.png", (10, 0, 0))
    save(tmp_path / "a" / "z.JPG", (200, 0, 0))
    save(tmp_path / "c.webp", (90, 0, 0))
    (tmp_path / "notes.txt").write_text("no picture")
    dataset = load(read_image_folder(tmp_path, 16), image_size=16, levels={}, cache_dir=tmp_path / "cache")
    assert dataset.space is None
    assert dataset.image_shape == (16, 16, 3)
    red = dataset.images(np.arange(3))[:, 8, 8, 0].astype(int)
    assert np.abs(red - [200, 10, 90]).max() <= 3  # lossy formats
    with pytest.raises(DataError, match="image_folder has no factors"):
        dataset.factors(np.array([0]))


def test_a_picture_is_scaled_to_its_shorter_side_and_cropped_to_its_centre(tmp_path: Path) -> None:
    wide = np.zeros((40, 120, 3), np.uint8)
    wide[:, 40:80] = 255  # the middle third is the square that stays
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert read_picture(tmp_path / "wide.png", 20)[:, 1:-1].min() > 200


@pytest.mark.parametrize(("mode", "colour"), [("L", (130,)), ("RGBA", (130, 130, 130, 255)), ("P", (0,))])
def test_every_colour_mode_becomes_rgb(tmp_path: Path, mode: str, colour: tuple[int, ...]) -> None:
    picture = Image.new("RGB", (16, 16), (130, 130, 130)).quantize(4) if mode == "P" else None
    if picture is None:
        save(tmp_path / "a.png", colour, (16, 16), mode)
    else:
        picture.save(tmp_path / "a.png")
    image = read_picture(tmp_path / "a.png", 8)
    assert image.shape == (8, 8, 3)
    assert (np.abs(image.astype(int) - 130) <= 2).all()


def test_a_rotated_photograph_is_turned_upright(tmp_path: Path) -> None:
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:16] = 255  # bright above
    exif = Image.Exif()
    exif[0x0112] = 3  # orientation: upside down
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    image = read_picture(tmp_path / "a.png", 32)
    assert image[:12].max() < 50
    assert image[20:].min() > 200


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    save(tmp_path / "good.png", (1, 2, 3))
    save(tmp_path / "bad.png", (1, 2, 3), (300, 300))
    content = (tmp_path / "bad.png").read_bytes()
    (tmp_path / "bad.png").write_bytes(content[: len(content) // 2])
    source = read_image_folder(tmp_path, 16)
    with pytest.raises(DataError, match=r"image_folder: cannot decode .*bad\.png \(.*\): repair or remove it"):
        load(source, image_size=16, levels={}, cache_dir=tmp_path / "cache")
    (tmp_path / "bad.png").write_bytes(b"\xff\xd8 text")
    with pytest.raises(DataError, match=r"cannot decode .*bad\.png"):
        read_picture(tmp_path / "bad.png", 16)


@pytest.mark.parametrize(("side", "message"), [(9_000, "9000x9000 px are too many"), (60_000, "cannot decode")])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path, side: int, message: str) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + body)
    with pytest.raises(DataError, match=message):
        read_picture(tmp_path / "bomb.png", 16)


@pytest.mark.parametrize(("kind", "dtype"), [("I;16", np.uint16), ("I", np.int32), ("F", np.float32)])
def test_more_than_8_bits_are_refused_rather_than_clipped(tmp_path: Path, kind: str, dtype: type) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(np.full((16, 16), 40_000, dtype)).save(path, "TIFF" if kind != "I;16" else "PNG")
    with pytest.raises(DataError, match=rf"image_folder: .*deep\.png: the image has mode {kind}: convert it to 8 bits"):
        read_picture(path, 16)


def test_a_grey_model_gets_one_channel(tmp_path: Path) -> None:
    save(tmp_path / "a.png", (255, 0, 0))
    grey = read_picture(tmp_path / "a.png", 8, 1)
    assert grey.shape == (8, 8, 1)
    assert (grey == 76).all()  # 0.299 * 255, the weight of red in ITU-R 601


def test_a_palette_with_transparency_is_read_without_a_warning(tmp_path: Path) -> None:
    picture = Image.new("P", (20, 20))
    picture.putpalette([130, 130, 130])
    picture.save(tmp_path / "a.png", transparency=bytes([0, 128]))
    assert (read_picture(tmp_path / "a.png", 16) == 130).all()


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"no \.jpeg, \.jpg, \.png, \.webp file below .*: set data.path to their folder"
    ):
        read_image_folder(tmp_path, 16)
