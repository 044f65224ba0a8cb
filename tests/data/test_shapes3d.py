from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from raydis.data import ArrayDataset
from raydis.data.shapes3d import RAYS_AT_ONCE, SHAPES3D, hue_rgb, render_shapes3d
from raydis.errors import DataError

CYLINDER, CAPSULE = 1, 3


def render(levels: dict, image_size: int = 64) -> ArrayDataset:
    return render_shapes3d(levels, image_size, cache_dir=Path("unused"))


def psnr(image: np.ndarray, reference: np.ndarray) -> float:
    """Without the outermost ring, which is blended with the page that the references were taken from."""
    error = (image.astype(float) - reference.astype(float))[1:63, 1:63]
    return float(10 * np.log10(255**2 / (error**2).mean()))


@pytest.fixture(scope="module")
def golden(shared_data: Path) -> dict[str, np.ndarray]:
    """Of the 25 real images: PSNR with the scale one step down, as labelled and one step up; shape; uncertain scale."""
    with h5py.File(shared_data / "shapes3d_golden" / "3dshapes_golden25.h5") as file:
        images, labels, uncertain = file["images"][:], file["labels"][:], file["scale_uncertain"][:]
    steps = np.array([0.1, 0.1, 0.1, 0.5 / 7, 1.0, 60 / 14])
    levels = np.rint((labels - [0, 0, 0, 0.75, 0, -30]) / steps).astype(int)
    scores = np.full((len(images), 3), -np.inf)
    for i, level in enumerate(levels):
        one_image = {name: (int(k),) for name, k in zip(SHAPES3D.names, level, strict=True)}
        scales = [int(scale) for scale in level[3] + np.arange(-1, 2) if 0 <= scale < 8]
        for scale, image in zip(scales, render({**one_image, "scale": tuple(scales)}).array, strict=True):
            scores[i, scale - level[3] + 1] = psnr(image, images[i])
    return {"psnr": scores, "shape": levels[:, 4], "uncertain": uncertain}


def best_psnr(golden: dict[str, np.ndarray], *, shiftable: np.ndarray) -> np.ndarray:
    return np.where(shiftable, golden["psnr"].max(axis=1), golden["psnr"][:, 1])


def test_images_match_the_real_ones(golden: dict[str, np.ndarray]) -> None:
    scores = best_psnr(golden, shiftable=golden["uncertain"])
    assert scores.mean() >= 30.0
    assert scores.min() >= 20.0


def test_images_match_the_real_ones_closely_once_cylinders_and_capsules_are_relabelled(
    golden: dict[str, np.ndarray],
) -> None:
    # The scales in the file were inferred with equal radii. But it gives images 10 and 17 the same scale although one
    # cylinder is 7 % wider, and with a radius of its own each cylinder and capsule fits a whole step beside its label.
    scores = best_psnr(golden, shiftable=golden["uncertain"] | np.isin(golden["shape"], (CYLINDER, CAPSULE)))
    assert scores.mean() >= 31.5
    assert scores.min() >= 29.0


def test_the_grid_is_that_of_3d_shapes() -> None:
    assert len(SHAPES3D) == 480_000
    assert SHAPES3D.names == ("floor_hue", "wall_hue", "object_hue", "scale", "shape", "orientation")
    assert SHAPES3D.sizes == (10, 10, 10, 8, 4, 15)


def test_hues_are_those_of_3d_shapes() -> None:
    levels = [tuple(round(255 * channel) for channel in hue_rgb(level)) for level in range(10)]
    assert levels == [
        *((255, 0, 0), (255, 153, 0), (204, 255, 0), (51, 255, 0), (0, 255, 102)),
        *((0, 255, 255), (0, 102, 255), (51, 0, 255), (204, 0, 255), (255, 0, 153)),
    ]


def test_a_sub_grid_holds_the_images_of_the_larger_grid() -> None:
    large = {"floor_hue": 2, "wall_hue": 2, "object_hue": 2, "scale": 2, "shape": 4, "orientation": 3}
    whole = render(large, 16)
    part = render({**large, "shape": (1, 3), "orientation": (5,), "wall_hue": 1}, 16)  # 5 is the second of 3 levels
    same = whole.subgrid({"shape": (1, 3), "orientation": (1,), "wall_hue": 1})
    assert part.space == same.space
    np.testing.assert_array_equal(part.array, same.images(np.arange(len(same))))


def test_orientations_rendered_in_several_chunks_are_the_same() -> None:
    size, at_once = 256, RAYS_AT_ONCE // (256 * 3) ** 2
    levels = {"floor_hue": 1, "wall_hue": 1, "object_hue": 1, "scale": 1, "shape": (2,)}
    whole = render({**levels, "orientation": tuple(range(at_once + 1))}, size)
    last = render({**levels, "orientation": (at_once,)}, size)
    np.testing.assert_array_equal(whole.array[at_once], last.array[0])


def test_each_factor_changes_the_image_and_a_hue_only_its_material() -> None:
    base = dict.fromkeys(SHAPES3D.names, (1,))
    for name in SHAPES3D.names:
        pair = render({**base, name: (1, 3)}, 32).array.astype(int)
        changed = np.abs(pair[0] - pair[1]).max(axis=-1) > 8
        assert 0.01 < changed.mean() < 0.9, name
        if name == "floor_hue":
            assert not changed[:10].any()  # sky and wall
        if name == "wall_hue":
            assert not changed[-8:].any()  # floor
        if name == "object_hue":
            assert not changed[:, :6].any()  # the object is in the middle
            assert not changed[:, -6:].any()


def test_a_larger_image_shows_the_same_scene() -> None:
    one = dict.fromkeys(SHAPES3D.names, (1,))
    small, large = (render(one, size).array[0].astype(float) for size in (64, 128))
    averaged = large.reshape(64, 2, 64, 2, 3).mean((1, 3))
    assert 10 * np.log10(255**2 / ((averaged - small) ** 2).mean()) > 35


def test_a_grid_too_large_for_memory_is_rendered_once_into_the_cache(tmp_path: Path) -> None:
    few = {"floor_hue": 2, "wall_hue": 2, "object_hue": 1, "scale": 1, "shape": 2, "orientation": 2}
    cached = [render_shapes3d(few, 16, cache_dir=tmp_path, ram_bytes=0) for _ in range(2)]
    assert len(list(tmp_path.glob("*.npy"))) == 1
    for dataset in cached:
        assert isinstance(dataset.array, np.memmap)
        np.testing.assert_array_equal(dataset.array, render(few, 16).array)
        assert dataset.fingerprint == render(few, 16).fingerprint


def test_equal_definitions_have_equal_fingerprints_and_others_do_not() -> None:
    one = dict.fromkeys(SHAPES3D.names, (1,))
    prints = [render(levels, size).fingerprint for levels, size in ((one, 16), ({**one, "scale": (1,)}, 16), (one, 32))]
    assert prints[0] == prints[1]
    assert prints[0] != prints[2]
    assert prints[0] != render({**one, "scale": (2,)}, 16).fingerprint


def test_levels_that_do_not_exist_are_refused() -> None:
    with pytest.raises(DataError, match="unknown factor hue: the factors are floor_hue"):
        render({"hue": 1})
