from __future__ import annotations

from pathlib import Path

import boto3
import numpy as np
import pytest
from PIL import Image

from raydis.config import DataConfig
from raydis.data import open_dataset
from raydis.errors import DataError
from tests.data.official import write_sprites

FEW = {
    "shapes3d_procedural": {"floor_hue": 1, "wall_hue": 1, "object_hue": 2, "scale": 1, "shape": 2, "orientation": 1},
    "dsprites_procedural": {"scale": 1, "orientation": 1, "position_x": 2, "position_y": 2},
}


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


@pytest.mark.parametrize("name", ["shapes3d", "dsprites", "mpi3d"])
def test_a_folder_where_a_file_is_expected_is_told(name: str, tmp_path: Path) -> None:
    config = DataConfig.model_validate({"name": name, "path": str(tmp_path)})
    with pytest.raises(DataError, match=rf"{name}: {tmp_path} is a folder: set data.path to the official file itself"):
        open_dataset(config, cache_dir=tmp_path)


@pytest.mark.parametrize("name", ["cars3d", "image_folder"])
def test_a_file_where_a_folder_is_expected_is_told(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"x")
    config = DataConfig.model_validate({"name": name, "path": str(tmp_path / "a.zip")})
    with pytest.raises(DataError, match=rf"{name}: .*a\.zip is a file: set data.path to the folder of the "):
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


@pytest.mark.s3
def test_a_folder_of_pictures_is_the_same_set_here_and_in_s3(s3_bucket: str, tmp_path: Path) -> None:
    client, bucket = boto3.client("s3"), s3_bucket.removeprefix("s3://")
    folder = tmp_path / "faces"
    (folder / "sub" / ".hidden").mkdir(parents=True)
    for number, name in enumerate(["b.png", "sub/a.bmp", "frame.0001", "sub/.hidden/c.png", "._b.png"]):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / name, "PNG")
    (folder / "README").write_text("no picture")
    (folder / "labels.csv").write_text("no picture")
    for path in folder.rglob("*"):
        if path.is_file():
            client.upload_file(str(path), bucket, f"faces/{path.relative_to(folder).as_posix()}")
    client.put_object(Bucket=bucket, Key="faces/logs//run.txt", Body=b"x")
    here = open_dataset(DataConfig(name="image_folder", path=str(folder), image_size=8), cache_dir=tmp_path / "c")
    there = open_dataset(
        DataConfig(name="image_folder", path=f"{s3_bucket}/faces", image_size=8), cache_dir=tmp_path / "c"
    )
    assert len(here) == len(there) == 3
    assert here.fingerprint == there.fingerprint


@pytest.mark.s3
def test_sprites_are_composed_from_sheets_in_s3(s3_bucket: str, shared_data: Path, tmp_path: Path) -> None:
    client, bucket = boto3.client("s3"), s3_bucket.removeprefix("s3://")
    sheets = shared_data / "sprites" / "sheets"
    for path in sheets.rglob("*.png"):
        client.upload_file(str(path), bucket, f"Sprites/{path.relative_to(sheets).as_posix()}")
    client.put_object(Bucket=bucket, Key="Sprites/frame_to_npy.py", Body=b"not needed")
    levels = {"body": 1, "bottomwear": 1, "topwear": 1, "hair": 2}
    sets = [
        open_dataset(DataConfig(name="sprites", path=path, levels=levels, image_size=16), cache_dir=tmp_path / "cache")
        for path in (str(sheets), f"{s3_bucket}/Sprites")
    ]
    np.testing.assert_array_equal(sets[0].images(np.arange(48)), sets[1].images(np.arange(48)))
    assert sets[0].fingerprint == sets[1].fingerprint
    assert len(list((tmp_path / "cache").rglob("*.png"))) == 25


def test_where_sprites_come_from_is_told_where_they_are_missing(tmp_path: Path) -> None:
    config = DataConfig(name="sprites", path=str(tmp_path / "Sprites"))
    expected = r"sprites: no file or folder .*Sprites: correct data.path, or download .*YingzhenLi/Sprites at commit"
    with pytest.raises(DataError, match=expected):
        open_dataset(config, cache_dir=tmp_path)
