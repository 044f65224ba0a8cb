from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raydis.data.cache import RAM_BYTES
from raydis.data.source import Source, load, numbered, resize
from raydis.data.space import FactorSpace
from raydis.errors import DataError

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), np.uint8)
SPACE = FactorSpace(("a", "b"), (3, 4))


def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    return numbered(IMAGES[start : start + 5] for start in range(0, 12, 5))


SOURCE = Source("set", IMAGES.shape, SPACE, "files", blocks)


def test_images_of_a_small_source_are_loaded_into_memory(tmp_path: Path) -> None:
    dataset = load(SOURCE, image_size=16, levels={}, cache_dir=tmp_path)
    np.testing.assert_array_equal(dataset.array, IMAGES)
    assert dataset.space == SPACE
    assert not list(tmp_path.iterdir())


def test_a_slow_source_is_decoded_once_into_the_cache(tmp_path: Path) -> None:
    slow = replace(SOURCE, slow=True)
    load(slow, image_size=16, levels={}, cache_dir=tmp_path)
    again = replace(slow, blocks=lambda: pytest.fail("decoded twice"))
    dataset = load(again, image_size=16, levels={}, cache_dir=tmp_path)
    assert isinstance(dataset.array, np.memmap)
    np.testing.assert_array_equal(dataset.array, IMAGES)


def test_a_source_that_decodes_to_more_than_fits_memory_is_cached_even_where_a_sub_grid_is_kept(tmp_path: Path) -> None:
    length = RAM_BYTES // (16 * 16 * 3) + 1
    one_image = np.zeros((1, 16, 16, 3), np.uint8)

    def only_the_first() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        yield np.array([0]), one_image + 9

    large = Source("set", (length, 16, 16, 3), FactorSpace(("n",), (length,)), "files", only_the_first)
    dataset = load(large, image_size=16, levels={"n": (0,)}, cache_dir=tmp_path)
    assert isinstance(dataset.array, np.memmap)
    np.testing.assert_array_equal(dataset.array, one_image + 9)


def test_a_sub_grid_is_kept(tmp_path: Path) -> None:
    dataset = load(SOURCE, image_size=16, levels={"a": (0, 2), "b": 2}, cache_dir=tmp_path)
    assert dataset.space == FactorSpace(("a", "b"), (2, 2))
    np.testing.assert_array_equal(dataset.array, IMAGES[[0, 2, 8, 10]])


def test_images_mapped_in_the_file_are_used_there_unless_they_are_resized(tmp_path: Path) -> None:
    mapped = replace(SOURCE, mapped=IMAGES.copy())
    in_place = load(mapped, image_size=16, levels={"b": (3,)}, cache_dir=tmp_path)
    assert in_place.array is mapped.mapped
    np.testing.assert_array_equal(in_place.images(np.arange(3)), IMAGES[[3, 7, 11]])
    assert load(mapped, image_size=8, levels={}, cache_dir=tmp_path).image_shape == (8, 8, 3)


def test_blocks_may_come_in_any_order(tmp_path: Path) -> None:
    backwards = replace(SOURCE, blocks=lambda: ((np.array([i]), IMAGES[[i]]) for i in range(11, -1, -1)))
    dataset = load(backwards, image_size=16, levels={"b": (1, 2)}, cache_dir=tmp_path)
    np.testing.assert_array_equal(dataset.array, IMAGES[[1, 2, 5, 6, 9, 10]])


def test_fingerprints_follow_files_size_and_sub_grid(tmp_path: Path) -> None:
    variants = [(SOURCE, 16, {}), (replace(SOURCE, fingerprint="g"), 16, {}), (SOURCE, 8, {}), (SOURCE, 16, {"a": 1})]
    prints = [load(s, image_size=size, levels=levels, cache_dir=tmp_path).fingerprint for s, size, levels in variants]
    assert len(set(prints)) == 4
    assert load(SOURCE, image_size=16, levels={}, cache_dir=tmp_path).fingerprint == prints[0]


def test_halving_an_image_averages_smoothly_as_pillow_does() -> None:
    smooth = np.asarray(Image.fromarray(IMAGES[0]).resize((64, 64), Image.Resampling.BICUBIC))
    ours = resize(smooth[None], 32)[0].astype(int)
    pillow = np.asarray(Image.fromarray(smooth).resize((32, 32), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(ours - pillow).max() <= 1


def test_resizing_keeps_a_constant_image_constant_and_a_fitting_image_untouched() -> None:
    constant = np.full((2, 16, 16, 1), 77, np.uint8)
    for size in (5, 8, 40):
        resized = resize(constant, size)
        assert resized.shape == (2, size, size, 1)
        assert (resized == 77).all()
    assert resize(IMAGES, 16) is IMAGES


def test_levels_without_factors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"set has no grid of factors, so it has no sub-grid: remove data\.levels"):
        load(replace(SOURCE, space=None), image_size=16, levels={"a": 1}, cache_dir=tmp_path)
