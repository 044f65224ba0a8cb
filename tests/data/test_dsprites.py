from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raydis.data import ArrayDataset
from raydis.data.dsprites import DSPRITES, inside, render_dsprites
from raydis.errors import DataError

SQUARE, ELLIPSE, HEART = range(3)


def render(levels: dict, image_size: int = 64) -> ArrayDataset:
    return render_dsprites(levels, image_size, cache_dir=Path("unused"))


def one(shape: int, scale: int = 5, orientation: int = 0, x: int = 16, y: int = 16, image_size: int = 64) -> np.ndarray:
    """One frame as booleans, (H, W)."""
    levels = dict(zip(DSPRITES.names, ((shape,), (scale,), (orientation,), (x,), (y,)), strict=True))
    return render(levels, image_size).array[0, :, :, 0] > 0


def test_frames_match_the_real_ones_but_for_few_pixels(shared_data: Path) -> None:
    with np.load(shared_data / "dsprites_golden" / "dsprites_golden.npz") as file:
        frames, classes = file["imgs"] > 0, file["latents_classes"]
    wrong = [
        (one(*levels) != frame).sum() for frame, (_, *levels) in zip(frames, classes.astype(int).tolist(), strict=True)
    ]
    assert np.mean(wrong) <= 0.5
    assert max(wrong) <= 4


def test_the_grid_is_that_of_dsprites_without_its_constant_colour() -> None:
    assert len(DSPRITES) == 737_280
    assert DSPRITES.names == ("shape", "scale", "orientation", "position_x", "position_y")
    assert DSPRITES.sizes == (3, 6, 40, 32, 32)


def test_frames_are_black_and_white() -> None:
    dataset = render({"scale": 2, "orientation": 2, "position_x": 2, "position_y": 2})
    assert dataset.image_shape == (64, 64, 1)
    assert np.unique(dataset.array).tolist() == [0, 255]


def test_a_sub_grid_holds_the_images_of_the_larger_grid() -> None:
    large = {"scale": 2, "orientation": 3, "position_x": 4, "position_y": 4}
    whole = render(large)
    part = render({**large, "shape": (2,), "position_y": (8, 24), "orientation": (13,)})
    same = whole.subgrid({"shape": (2,), "position_y": (1, 3), "orientation": (1,)})
    np.testing.assert_array_equal(part.array, same.images(np.arange(len(same))))


def test_position_moves_the_shape_and_y_points_down() -> None:
    for x, y in ((0, 0), (0, 31), (31, 0), (31, 31)):
        rows, columns = np.nonzero(one(SQUARE, x=x, y=y))
        assert abs(columns.mean() + 0.5 - (16 + 32 * x / 31)) < 0.5
        assert abs(rows.mean() + 0.5 - (16 + 32 * y / 31)) < 0.5


@pytest.mark.parametrize("shape", [SQUARE, ELLIPSE, HEART])
def test_area_grows_with_the_square_of_the_scale(shape: int) -> None:
    levels = {"shape": (shape,), "orientation": 1, "position_x": 8, "position_y": 8}  # averages over pixel phases
    half, full = ((render({**levels, "scale": (scale,)}).array > 0).sum() for scale in (0, 5))
    assert full == pytest.approx(4 * half, rel=0.02)


def test_areas_are_those_of_the_shapes() -> None:
    assert one(SQUARE).sum() == pytest.approx(19.2**2, rel=0.03)
    assert one(ELLIPSE).sum() == pytest.approx(np.pi * 12.76 * 7.22, rel=0.03)


def test_the_first_and_the_last_orientation_are_equal() -> None:
    for shape in (SQUARE, ELLIPSE, HEART):
        np.testing.assert_array_equal(one(shape, orientation=0), one(shape, orientation=39))
    assert (one(HEART, orientation=0) != one(HEART, orientation=20)).any()


def test_the_heart_is_mirror_symmetric_and_its_tip_points_down() -> None:
    u, v = np.meshgrid(np.linspace(-12, 12, 97), np.linspace(-12, 12, 97))
    heart = inside(HEART, u, v)
    np.testing.assert_array_equal(heart, heart[:, ::-1])
    widths = heart.sum(axis=1)
    lines = np.flatnonzero(widths)
    assert widths[lines[-1]] < 0.2 * widths.max()
    assert widths[lines[0] + 4] > 0.5 * widths.max()


def test_other_sizes_sample_the_same_shapes() -> None:
    large = one(HEART, x=7, y=22, image_size=192)  # the middle one of 3x3 samples has a 64 px sample's place
    np.testing.assert_array_equal(large[1::3, 1::3], one(HEART, x=7, y=22))


def test_every_pixel_of_a_sprite_is_drawn_wherever_it_lies() -> None:
    # a frame is drawn within a window of columns only: compare with the definition, applied to the whole canvas
    for scale in (0, 5):
        for orientation in (0, 3, 5):
            for x in (0, 15, 31):
                angle, size = 2 * np.pi * orientation / 39, 0.5 + 0.1 * scale
                dx = np.arange(64) + 0.5 - (16 + 32 * x / 31)
                dy = (np.arange(64) + 0.5 - 16)[:, None]
                u = (np.cos(angle) * dx - np.sin(angle) * dy) / size
                v = (np.sin(angle) * dx + np.cos(angle) * dy) / size
                drawn = one(SQUARE, scale=scale, orientation=orientation, x=x, y=0)
                assert (drawn != inside(SQUARE, u, v)).sum() <= 1  # an edge may fall on a pixel's centre


def test_a_grid_too_large_for_memory_is_rendered_once_into_the_cache(tmp_path: Path) -> None:
    few = {"scale": 1, "orientation": 2, "position_x": 2, "position_y": 2}
    cached = [render_dsprites(few, 16, cache_dir=tmp_path, ram_bytes=0) for _ in range(2)]
    assert len(list(tmp_path.glob("*.npy"))) == 1
    for dataset in cached:
        assert isinstance(dataset.array, np.memmap)
        np.testing.assert_array_equal(dataset.array, render(few, 16).array)
        assert dataset.fingerprint == render(few, 16).fingerprint


def test_equal_definitions_have_equal_fingerprints_and_others_do_not() -> None:
    few = {"scale": 1, "orientation": 1, "position_x": 2, "position_y": 2}
    assert render(few).fingerprint == render(dict(few)).fingerprint
    assert render(few).fingerprint != render({**few, "scale": (1,)}).fingerprint
    assert render(few).fingerprint != render(few, 32).fingerprint


def test_levels_that_do_not_exist_are_refused() -> None:
    with pytest.raises(DataError, match="unknown factor colour: the factors are shape, scale"):
        render({"colour": 1})
