from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raydis.data import ArrayDataset
from raydis.data.files import read_sprites
from raydis.data.source import load
from raydis.data.sprites import SHEETS, SPRITES, read_sprite_sheets
from raydis.errors import DataError

SHEET_SIZE = (832, 1344)
COLOURS = {"body": (200, 0, 0), "bottomwear": (0, 200, 0), "topwear": (0, 0, 200), "hair": (90, 90, 0)}


def opened(folder: Path, tmp_path: Path) -> ArrayDataset:
    return load(read_sprite_sheets(folder), image_size=64, levels={}, cache_dir=tmp_path / "cache")


@pytest.fixture
def sheets(tmp_path: Path) -> Path:
    """Sheets that are transparent but for a row a part; a garment's number is in its colour, a cell's in the canvas."""
    folder = tmp_path / "sheets"
    for row, (part, colour) in enumerate(COLOURS.items()):
        for number in range(6):
            pixels = np.zeros((21, 64, 13, 64, 4), np.uint8)
            pixels[:, row, :, :, :3] = np.add(colour, number)
            pixels[:, row, :, :, 3] = 255
            if part == "body":
                pixels[:, 10, :, :, 0] = np.arange(273).reshape(21, 13, 1) % 256
                pixels[:, 10, :, :, 3] = 255
            path = folder / part / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.reshape(1344, 832, 4)).save(path)
    (folder / "shoes").mkdir()
    shoes = np.zeros((1344, 832, 4), np.uint8)
    shoes[::64] = (255, 255, 255, 128)  # half transparent, over the row of the body
    Image.fromarray(shoes).save(folder / "shoes" / "1.png")
    return folder


def test_the_sheets_compose_to_the_published_grid_image_by_image(shared_data: Path, tmp_path: Path) -> None:
    composed = opened(shared_data / "sprites" / "sheets", tmp_path)
    path = shared_data / "sprites" / "sprites_walk_6x6x6x6x3x8.npz"
    published = load(read_sprites(path), image_size=64, levels={}, cache_dir=tmp_path / "cache")
    assert composed.space == published.space == SPRITES
    assert np.array_equal(composed.array, published.array)
    with np.load(path, allow_pickle=False) as file:
        np.testing.assert_array_equal(composed.factors(np.arange(31_104)), file["labels"])


def test_garments_lie_over_black_in_their_order_and_frames_come_from_their_cells(sheets: Path, tmp_path: Path) -> None:
    dataset = opened(sheets, tmp_path)
    body, bottom, top, hair, direction, frame = 5, 4, 3, 2, 1, 7
    index = dataset.space.index(np.array([[body, bottom, top, hair, direction, frame]])) if dataset.space else None
    assert index is not None
    (image,) = dataset.images(index)
    assert np.abs(image[0].astype(int) - (np.array([205, 5, 5]) + 255) / 2).max() <= 1  # shoes over the body
    for row, colour in ((1, (4, 204, 4)), (2, (3, 3, 203)), (3, (92, 92, 2))):
        assert (image[row] == colour).all()
    assert (image[11:] == 0).all()
    assert (image[10, :, 0] == 118 + 6).all()  # frame k > 0 of a walk is its cell k - 1
    first_frames = dataset.images(np.array([0, 8, 16]))[:, 10, 0, 0]
    assert first_frames.tolist() == [138, 125, 151]  # and frame 0 its last


def test_the_fingerprint_is_that_of_the_sheets_that_are_used(sheets: Path, tmp_path: Path) -> None:
    before = read_sprite_sheets(sheets).fingerprint
    (sheets / "hair" / "9.png").write_bytes(b"not used")
    (sheets / "eyes").mkdir()
    shutil.copytree(sheets, tmp_path / "copy")
    assert read_sprite_sheets(tmp_path / "copy").fingerprint == before
    shutil.copy(sheets / "hair" / "0.png", sheets / "hair" / "5.png")
    assert read_sprite_sheets(sheets).fingerprint != before


def test_all_sheets_that_cannot_be_used_are_named_with_where_to_get_them(sheets: Path) -> None:
    assert len(SHEETS) == 25
    (sheets / "body" / "3.png").unlink()
    Image.new("RGBA", (64, 64)).save(sheets / "hair" / "2.png")
    content = (sheets / "topwear" / "0.png").read_bytes()
    (sheets / "topwear" / "0.png").write_bytes(content[: len(content) // 2])
    (sheets / "shoes" / "1.png").write_bytes(b"<html>")
    with pytest.raises(
        DataError, match=r"sprites: 4 of the 25 sheets in .* cannot be used: body/3\.png is missing; "
    ) as caught:
        read_sprite_sheets(sheets)
    message = str(caught.value)
    assert "hair/2.png is 64 x 64 px, expected 832 x 1344" in message
    assert "topwear/0.png is damaged (image file is truncated" in message
    assert "shoes/1.png is damaged (cannot identify" in message
    assert "github.com/YingzhenLi/Sprites at commit 3ce4048 (CC-BY-SA 3.0 or GPL 3.0)" in message
    assert SHEET_SIZE == (832, 1344)
