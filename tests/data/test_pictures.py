from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raydis.data.decode import FORMATS, SUFFIXES
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
    with pytest.raises(DataError, match=r"cannot decode 1 of 2 pictures in .*: bad\.png is damaged or truncated"):
        load(source, image_size=16, levels={}, cache_dir=tmp_path / "cache")
    (tmp_path / "bad.png").write_bytes(b"\xff\xd8\xff text")
    with pytest.raises(DataError, match=r"cannot decode .*bad\.png"):
        read_picture(tmp_path / "bad.png", 16)


@pytest.mark.parametrize(
    ("side", "message"), [(9_000, "9000 x 9000 pixels, more than the limit of 64000000"), (60_000, "far too many")]
)
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
    with pytest.raises(DataError, match=rf"cannot decode .*deep\.png: it has mode {kind}: convert it to 8 bits"):
        read_picture(path, 16)


def test_a_grey_model_gets_one_channel(tmp_path: Path) -> None:
    save(tmp_path / "a.png", (255, 0, 0))
    grey = read_picture(tmp_path / "a.png", 8, 1)
    assert grey.shape == (8, 8, 1)
    assert (grey == 76).all()  # 0.299 * 255, the weight of red in ITU-R 601


def test_a_folder_without_pictures_is_refused_and_what_is_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"image_folder: no picture below .* \(it is empty\): set data.path to a folder"
    ):
        read_image_folder(tmp_path, 16)
    for name in ("a.txt", "b.txt", "c.npz", "README", ".DS_Store"):
        (tmp_path / name).write_text("no picture")
    message = r"\(skipped: \.txt \(2\), \.npz \(1\), hidden \(1\), without suffix \(1\)\): set data.path"
    with pytest.raises(DataError, match=message):
        read_image_folder(tmp_path, 16)


def number_of(folder: Path) -> int:
    return read_image_folder(folder, 16).shape[0]


@pytest.mark.parametrize("kind", ["BMP", "DIB", "GIF", "TIFF", "PPM", "JPEG2000", "PCX", "SGI", "WEBP", "PNG", "JPEG"])
def test_every_format_is_read_and_told_by_its_content(tmp_path: Path, kind: str) -> None:
    picture = Image.new("RGB", (20, 20), (200, 20, 20))
    picture.save(tmp_path / "a.png", kind)  # under a name that need not be right
    picture.save(tmp_path / "frame.0001", kind)  # or tells nothing
    picture.save(tmp_path / "b", kind)
    dataset = load(read_image_folder(tmp_path, 16), image_size=16, levels={}, cache_dir=tmp_path / ".cache")
    assert len(dataset) == 3
    assert np.abs(dataset.array.astype(int) - [200, 20, 20]).max() <= 6


def test_the_suffixes_are_those_of_the_formats() -> None:
    Image.init()
    assert {Image.registered_extensions()[suffix] for suffix in SUFFIXES} - {"MPO"} <= set(FORMATS)
    assert {kind for suffix, kind in Image.registered_extensions().items() if suffix in SUFFIXES} >= set(FORMATS)


def test_the_first_frame_of_an_animation_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (20, 20), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    for name in ("a.gif", "a.png", "a.webp", "a.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert read_picture(tmp_path / name, 16)[8, 8, 0] > 240


def test_files_without_suffix_count_where_they_begin_as_a_picture(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path / "a.png", (1, 2, 3))
    (tmp_path / "a.png").rename(tmp_path / "n0213")
    (tmp_path / "LICENSE").write_text("BMW and others may use it")  # BM is how a BMP begins
    (tmp_path / "empty").write_bytes(b"")
    assert number_of(tmp_path) == 1
    assert f"image_folder: number of pictures in {tmp_path}: 1; skipped: without suffix (2)" in caplog.text
    assert caplog.text.count("\n") == 1


def test_nothing_is_said_where_nothing_was_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path / "a.png", (1, 2, 3))
    assert number_of(tmp_path) == 1
    assert not caplog.text


def test_all_broken_pictures_are_named_at_once_up_to_a_number(tmp_path: Path) -> None:
    save(tmp_path / "good.png", (1, 2, 3))
    for number in range(30):
        (tmp_path / f"{number:02}.jpg").write_bytes(b"")
    (tmp_path / "00.jpg").write_bytes(b"<html>Sign in</html>")
    (tmp_path / "01.jpg").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "02\n.jpg").write_bytes(b"x")
    (tmp_path / "02.jpg").unlink()
    os.rename(tmp_path / "03.jpg", os.fsencode(tmp_path) + b"/03\xe9.jpg")
    source = read_image_folder(tmp_path, 16)
    with pytest.raises(DataError, match=r"image_folder: cannot decode 30 of 31 pictures in ") as caught:
        load(source, image_size=16, levels={}, cache_dir=tmp_path / "cache")
    message = str(caught.value)
    assert "00.jpg is an HTML page" in message
    assert "01.jpg is a Git LFS pointer" in message
    assert "02\\n.jpg is a text file" in message
    assert "03\\udce9.jpg is empty" in message
    assert "19.jpg is empty; and 10 more. Repair or remove them" in message
    assert message.isprintable()
    assert not list((tmp_path / "cache").glob("*.npy"))


def test_pictures_that_look_equal_are_equal_and_have_another_fingerprint_than_before(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (20, 20, 4), np.uint8)
    colours[..., 3] = np.where(np.arange(20) < 10, 0, 255)
    Image.fromarray(colours).save(tmp_path / "a.png")
    colours[:, :10, :3] = 7  # hidden below an alpha of 0
    Image.fromarray(colours).save(tmp_path / "b.png")
    one, two = read_picture(tmp_path / "a.png", 16), read_picture(tmp_path / "b.png", 16)
    np.testing.assert_array_equal(one, two)
    assert read_image_folder(tmp_path, 16).decoder == 2  # of what is cached under the files' fingerprint


def test_a_file_too_large_to_be_a_picture_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.tif").open("wb") as file:
        file.truncate(2 << 30)
    with pytest.raises(DataError, match=r"a\.tif: it has 2147483648 bytes, more than the limit of 1073741824"):
        read_picture(tmp_path / "a.tif", 16)


def test_a_missing_picture_is_reported(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot decode .*no\.png: it cannot be read \(No such file or directory\)"):
        read_picture(tmp_path / "no.png", 16)


def test_metadata_of_a_tiff_file_that_cannot_be_read_does_not_matter(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    exif.get_ifd(0x8769)[0x9003] = "2020:01:01 00:00:00"
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:16] = 255
    Image.fromarray(pixels).save(tmp_path / "a.tif", exif=exif.tobytes())
    content = bytearray((tmp_path / "a.tif").read_bytes())
    entry = content.index(struct.pack("<HHI", 0x8769, 4, 1))
    content[entry + 8 : entry + 12] = struct.pack("<I", 0xFFFFFF00)  # where its EXIF lies: behind the end
    (tmp_path / "a.tif").write_bytes(content)
    image = read_picture(tmp_path / "a.tif", 32)
    assert image[:12].max() < 50
    assert image[20:].min() > 200
