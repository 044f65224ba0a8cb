from __future__ import annotations

from pathlib import Path

import boto3
import numpy as np
import pytest
from PIL import Image

from raydis.config import DataConfig
from raydis.data import open_dataset
from raydis.errors import DataError

FEW = {
    "shapes3d_procedural": {"floor_hue": 1, "wall_hue": 1, "object_hue": 2, "scale": 1, "shape": 2, "orientation": 1},
    "dsprites_procedural": {"scale": 1, "orientation": 1, "position_x": 2, "position_y": 2},
}


def write_sprites(path: Path) -> np.ndarray:
    images = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), np.uint8)
    labels = np.stack(np.unravel_index(np.arange(6), (2, 3)), axis=1)
    names, sizes = np.array(["body", "hair"]), np.array([2, 3])
    np.savez(path, images=images, labels=labels, factor_names=names, factor_sizes=sizes)
    return images


@pytest.mark.parametrize(("name", "channels"), [("shapes3d_procedural", 3), ("dsprites_procedural", 1)])
def test_a_procedural_set_opens_without_files(name: str, channels: int, tmp_path: Path) -> None:
    config = DataConfig.model_validate({"name": name, "image_size": 32, "levels": FEW[name]})
    dataset = open_dataset(config, cache_dir=tmp_path)
    assert dataset.name == name
    assert dataset.image_shape == (32, 32, channels)
    assert dataset.space is not None
    assert len(dataset) == len(dataset.space)
    assert not list(tmp_path.iterdir())


def test_a_file_is_opened_with_its_sub_grid_at_the_size_asked_for(tmp_path: Path) -> None:
    images = write_sprites(tmp_path / "sprites.npz")
    path = str(tmp_path / "sprites.npz")
    dataset = open_dataset(DataConfig(name="sprites", path=path, image_size=16, levels={"hair": (0, 2)}))
    np.testing.assert_array_equal(dataset.images(np.arange(4)), images[[0, 2, 3, 5]])
    small = open_dataset(DataConfig(name="sprites", path=path, image_size=8), cache_dir=tmp_path)
    assert small.image_shape == (8, 8, 3)


def test_a_folder_of_pictures_is_opened(tmp_path: Path) -> None:
    Image.new("RGB", (9, 12), (50, 60, 70)).save(tmp_path / "a.png")
    config = DataConfig(name="image_folder", path=str(tmp_path), image_size=8)
    dataset = open_dataset(config, cache_dir=tmp_path / "cache")
    np.testing.assert_array_equal(dataset.images(np.array([0]))[0, 4, 4], [50, 60, 70])


@pytest.mark.parametrize("name", ["shapes3d", "dsprites", "mpi3d", "sprites"])
def test_a_missing_file_is_reported_before_anything_is_read(name: str, tmp_path: Path) -> None:
    config = DataConfig.model_validate({"name": name, "path": str(tmp_path / "missing")})
    with pytest.raises(DataError, match=rf"{name}: no file .*missing: correct data.path"):
        open_dataset(config, cache_dir=tmp_path)


@pytest.mark.parametrize("name", ["cars3d", "image_folder"])
def test_a_missing_folder_is_reported(name: str, tmp_path: Path) -> None:
    config = DataConfig.model_validate({"name": name, "path": str(tmp_path / "missing")})
    with pytest.raises(DataError, match=rf"{name}: no folder .*missing: correct data.path"):
        open_dataset(config, cache_dir=tmp_path)


def test_levels_of_another_set_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="unknown factor hair: the factors are floor_hue"):
        open_dataset(DataConfig(levels={"hair": 2}), cache_dir=tmp_path)


@pytest.mark.s3
def test_a_file_and_a_folder_are_opened_from_s3(s3_bucket: str, tmp_path: Path) -> None:
    images = write_sprites(tmp_path / "sprites.npz")
    Image.new("RGB", (8, 8), (50, 60, 70)).save(tmp_path / "a.png")
    client = boto3.client("s3")
    bucket = s3_bucket.removeprefix("s3://")
    client.upload_file(str(tmp_path / "sprites.npz"), bucket, "sets/sprites.npz")
    client.upload_file(str(tmp_path / "a.png"), bucket, "faces/deep/a.png")
    cache = tmp_path / "cache"
    file = DataConfig(name="sprites", path=f"{s3_bucket}/sets/sprites.npz", image_size=16)
    np.testing.assert_array_equal(open_dataset(file, cache_dir=cache).images(np.arange(6)), images)
    local = DataConfig(name="sprites", path=str(tmp_path / "sprites.npz"), image_size=16)
    assert open_dataset(file, cache_dir=cache).fingerprint == open_dataset(local).fingerprint
    folder = DataConfig(name="image_folder", path=f"{s3_bucket}/faces", image_size=8)
    np.testing.assert_array_equal(open_dataset(folder, cache_dir=cache).images(np.array([0]))[0, 4, 4], [50, 60, 70])
