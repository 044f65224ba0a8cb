from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
from PIL import Image

from raydis.data import ArrayDataset, FactorSpace
from raydis.data.files import (
    MPI3D_NAMES,
    mpi3d_space,
    read_cars3d,
    read_dsprites,
    read_mpi3d,
    read_shapes3d,
    read_sprites,
)
from raydis.data.source import Source, load
from raydis.errors import DataError
from tests.data.official import SMALL_DSPRITES, SMALL_SHAPES3D, grid, write_cars, write_dsprites, write_shapes3d

rng = np.random.default_rng(0)


def opened(source: Source, tmp_path: Path, image_size: int = 64) -> ArrayDataset:
    return load(source, image_size=image_size, levels={}, cache_dir=tmp_path / "cache")


# 3D Shapes


def test_shapes3d_is_read_from_its_hdf5_file(tmp_path: Path) -> None:
    images = write_shapes3d(tmp_path / "3dshapes.h5")
    dataset = opened(read_shapes3d(tmp_path / "3dshapes.h5", SMALL_SHAPES3D), tmp_path)
    np.testing.assert_array_equal(dataset.array, images)
    assert dataset.space == SMALL_SHAPES3D


def test_a_part_of_shapes3d_is_refused(shared_data: Path) -> None:
    with pytest.raises(
        DataError, match=r"images in .* are uint8 of shape \(25, 64, 64, 3\); expected uint8 of shape \(480000, any"
    ):
        read_shapes3d(shared_data / "shapes3d_golden" / "3dshapes_golden25.h5")


def test_shuffled_labels_of_shapes3d_are_refused(tmp_path: Path) -> None:
    write_shapes3d(tmp_path / "a.h5", labels=grid(SMALL_SHAPES3D)[::-1].astype(float))
    with pytest.raises(
        DataError, match=r"shapes3d: labels of shape \(192, 6\) .* do not run through the grid .* unshuffled"
    ):
        read_shapes3d(tmp_path / "a.h5", SMALL_SHAPES3D)


def test_other_images_in_a_shapes3d_file_are_refused(tmp_path: Path) -> None:
    write_shapes3d(tmp_path / "a.h5", images=np.zeros((len(SMALL_SHAPES3D), 8, 8, 3), np.float32))
    with pytest.raises(
        DataError, match=r"float32 of shape \(192, 8, 8, 3\); expected uint8 of shape \(192, any, any, 3\)"
    ):
        read_shapes3d(tmp_path / "a.h5", SMALL_SHAPES3D)


def test_a_shapes3d_file_without_its_keys_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = [1]
    with pytest.raises(DataError, match=r"a\.h5 has no array images, found data: is it the official"):
        read_shapes3d(tmp_path / "a.h5")


def test_a_missing_or_truncated_shapes3d_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"shapes3d: no file .*a\.h5"):
        read_shapes3d(tmp_path / "a.h5")
    write_shapes3d(tmp_path / "a.h5")
    content = (tmp_path / "a.h5").read_bytes()
    (tmp_path / "a.h5").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"shapes3d: .*a\.h5 is truncated \(.*\): download it again"):
        read_shapes3d(tmp_path / "a.h5", SMALL_SHAPES3D)


def test_shapes3d_is_read_from_an_npz_whatever_its_suffix(tmp_path: Path) -> None:
    images = write_shapes3d(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5") as file:
        labels = file["labels"][:]
    with (tmp_path / "3dshapes.h5").open("wb") as file:
        np.savez_compressed(file, images=images, labels=labels)
    dataset = opened(read_shapes3d(tmp_path / "3dshapes.h5", SMALL_SHAPES3D), tmp_path)
    np.testing.assert_array_equal(dataset.array, images)
    assert dataset.space == SMALL_SHAPES3D


def test_shapes3d_with_an_axis_a_factor_is_read_as_disentanglement_lib_stores_it(tmp_path: Path) -> None:
    images = write_shapes3d(tmp_path / "a.h5")
    sizes = SMALL_SHAPES3D.sizes
    labels = grid(SMALL_SHAPES3D).reshape(*sizes, 6).astype(np.float32)
    np.savez(tmp_path / "3dshapes.npz", images=images.reshape(*sizes, 64, 64, 3), labels=labels)
    dataset = opened(read_shapes3d(tmp_path / "3dshapes.npz", SMALL_SHAPES3D), tmp_path)
    assert isinstance(dataset.array, np.memmap)
    np.testing.assert_array_equal(dataset.array, images)


# dSprites


def test_dsprites_is_read_from_its_archive_in_black_and_white(tmp_path: Path) -> None:
    imgs = write_dsprites(tmp_path / "dsprites.npz")
    dataset = opened(read_dsprites(tmp_path / "dsprites.npz", SMALL_DSPRITES), tmp_path)
    np.testing.assert_array_equal(dataset.array[..., 0], imgs * 255)
    assert dataset.image_shape == (64, 64, 1)
    assert dataset.space == SMALL_DSPRITES


def test_dsprites_is_read_from_its_hdf5_file_as_from_its_archive(tmp_path: Path) -> None:
    imgs = write_dsprites(tmp_path / "dsprites.npz")
    with np.load(tmp_path / "dsprites.npz") as archive, h5py.File(tmp_path / "dsprites.hdf5", "w") as file:
        # The official file: chunks that hold a part of many images.
        file.create_dataset("imgs", data=imgs, chunks=(16, 2, 4), compression="gzip")
        file["latents/classes"], file["latents/values"] = archive["latents_classes"], archive["latents_values"]
    dataset = opened(read_dsprites(tmp_path / "dsprites.hdf5", SMALL_DSPRITES), tmp_path)
    np.testing.assert_array_equal(dataset.array[..., 0], imgs * 255)
    assert dataset.space == SMALL_DSPRITES


def test_labels_of_another_type_are_told_in_plain_words(tmp_path: Path) -> None:
    write_dsprites(tmp_path / "a.npz", latents_classes=np.zeros((48, 6)))
    expected = r"latents_classes in .* are float64 of shape \(48, 6\); expected integers of shape \(48, 6\): is it"
    with pytest.raises(DataError, match=expected):
        read_dsprites(tmp_path / "a.npz", SMALL_DSPRITES)


def test_a_part_of_dsprites_is_refused(shared_data: Path) -> None:
    with pytest.raises(
        DataError, match=r"imgs in .* are uint8 of shape \(129, 64, 64\); expected uint8 of shape \(737280, any, any\)"
    ):
        read_dsprites(shared_data / "dsprites_golden" / "dsprites_golden.npz")


def test_dsprites_in_another_order_or_with_grey_levels_is_refused(tmp_path: Path) -> None:
    shuffled = np.concatenate([np.zeros((48, 1), int), grid(SMALL_DSPRITES)[::-1]], axis=1)
    write_dsprites(tmp_path / "a.npz", latents_classes=shuffled)
    with pytest.raises(DataError, match=r"dsprites: labels of shape \(48, 5\) .* do not run through the grid"):
        read_dsprites(tmp_path / "a.npz", SMALL_DSPRITES)
    write_dsprites(tmp_path / "b.npz", imgs=np.full((48, 64, 64), 255, np.uint8))
    with pytest.raises(DataError, match=r"imgs in .*b\.npz hold 255, expected 0 and 1"):
        opened(read_dsprites(tmp_path / "b.npz", SMALL_DSPRITES), tmp_path)


# MPI3D


@pytest.mark.parametrize(
    ("length", "sizes"), [(1_036_800, (6, 6, 2, 3, 3, 40, 40)), (460_800, (4, 4, 2, 3, 3, 40, 40))]
)
def test_the_grid_of_mpi3d_follows_from_its_number_of_images(length: int, sizes: tuple[int, ...]) -> None:
    assert mpi3d_space(length) == FactorSpace(MPI3D_NAMES, sizes)
    assert len(mpi3d_space(length)) == length


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_mpi3d_is_read_from_its_archive_and_mapped_where_it_is_not_compressed(save: object, tmp_path: Path) -> None:
    images = np.zeros((460_800, 2, 2, 3), np.uint8)  # 2 px stand for 64: the length is what counts
    images[::1000] = rng.integers(0, 256, (461, 2, 2, 3))
    assert callable(save)
    save(tmp_path / "mpi3d.npz", images=images)
    source = read_mpi3d(tmp_path / "mpi3d.npz")
    dataset = opened(source, tmp_path, image_size=2)
    np.testing.assert_array_equal(dataset.array, images)
    assert isinstance(dataset.array, np.memmap) == (save is np.savez)
    assert dataset.space == mpi3d_space(460_800)


@pytest.mark.parametrize("shape", [(460_800,), (4, 4, 2, 3, 3, 40, 40)])
def test_mpi3d_is_read_from_an_npy_file_flat_or_with_an_axis_a_factor(shape: tuple[int, ...], tmp_path: Path) -> None:
    images = np.zeros((*shape, 2, 2, 3), np.uint8)
    images.reshape(460_800, 2, 2, 3)[::1000] = rng.integers(0, 256, (461, 2, 2, 3))
    np.save(tmp_path / "mpi3d.npy", images)
    dataset = opened(read_mpi3d(tmp_path / "mpi3d.npy"), tmp_path, image_size=2)
    np.testing.assert_array_equal(dataset.array, images.reshape(460_800, 2, 2, 3))
    assert isinstance(dataset.array, np.memmap)
    assert dataset.space == mpi3d_space(460_800)


def test_mpi3d_of_another_length_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((1234, 2, 2, 3), np.uint8))
    with pytest.raises(DataError, match=r"mpi3d: found 1,234 images, expected 1,036,800 or 460,800: use the whole"):
        read_mpi3d(tmp_path / "a.npz")


# Sprites


def test_the_real_sprites_are_read_with_their_labels(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "sprites" / "sprites_walk_6x6x6x6x3x8.npz"
    dataset = opened(read_sprites(path), tmp_path)
    assert len(dataset) == 31_104
    assert dataset.space == FactorSpace(
        ("body", "bottomwear", "topwear", "hair", "direction", "frame"), (6, 6, 6, 6, 3, 8)
    )
    with np.load(path, allow_pickle=False) as file:
        np.testing.assert_array_equal(dataset.factors(np.arange(31_104)), file["labels"])
    # Two images that differ in direction only show the same clothes: their sets of colours are nearly the same.
    left, right = dataset.images(dataset.space.index(np.array([[1, 2, 3, 4, 1, 0], [1, 2, 3, 4, 2, 0]])))
    colours = [set(map(tuple, image.reshape(-1, 3).tolist())) for image in (left, right)]
    assert len(colours[0] & colours[1]) > 0.7 * len(colours[0] | colours[1])


def test_sprites_whose_labels_are_no_grid_are_refused(tmp_path: Path) -> None:
    arrays = {
        "images": np.zeros((6, 8, 8, 3), np.uint8),
        "factor_names": np.array(["a", "b"]),
        "factor_sizes": np.array([2, 3]),
        "labels": grid(FactorSpace(("a", "b"), (2, 3))),
    }
    np.savez(tmp_path / "good.npz", **arrays)
    assert len(opened(read_sprites(tmp_path / "good.npz"), tmp_path, 8)) == 6
    np.savez(tmp_path / "a.npz", **{**arrays, "labels": arrays["labels"][::-1]})
    with pytest.raises(DataError, match=r"sprites: labels of shape \(6, 2\) .* do not run through the grid \(2, 3\)"):
        read_sprites(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", **{**arrays, "images": arrays["images"][:5]})
    with pytest.raises(
        DataError,
        match=r"images in .*b\.npz are uint8 of shape \(5, 8, 8, 3\); expected uint8 of shape \(6, any, any, 3\)",
    ):
        read_sprites(tmp_path / "b.npz")


# Cars3D


def test_cars3d_is_read_from_its_folder_with_the_object_varying_fastest(tmp_path: Path) -> None:
    cars = write_cars(tmp_path / "cars")
    dataset = opened(read_cars3d(tmp_path / "cars", 64), tmp_path)
    assert dataset.space == FactorSpace(("elevation", "azimuth", "object"), (4, 24, 3))
    for elevation, azimuth, car in ((0, 0, 0), (3, 23, 2), (1, 7, 2)):
        index = dataset.space.index(np.array([[elevation, azimuth, car]]))
        thumbnail = Image.fromarray(cars[car, elevation, azimuth])
        thumbnail.thumbnail((64, 64), Image.Resampling.LANCZOS)  # as in disentanglement_lib
        np.testing.assert_array_equal(dataset.images(index)[0], np.asarray(thumbnail))


def test_a_folder_without_cars_or_with_a_damaged_one_is_reported(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cars3d: no \.mat file below .* \(it is empty\): set data.path"):
        read_cars3d(tmp_path, 64)
    write_cars(tmp_path / "cars", count=2)
    scipy.io.savemat(tmp_path / "cars" / "car_001_mesh.mat", {"im": np.zeros((128, 128, 3), np.uint8)})
    with pytest.raises(
        DataError, match=r"car_001_mesh\.mat has im of type uint8 and shape \(128, 128, 3\), expected im of"
    ):
        opened(read_cars3d(tmp_path / "cars", 64), tmp_path)
    scipy.io.savemat(tmp_path / "cars" / "car_001_mesh.mat", {"mesh": np.zeros(3)})
    with pytest.raises(DataError, match=r"car_001_mesh\.mat has no variable im"):
        opened(read_cars3d(tmp_path / "cars", 64), tmp_path)
    (tmp_path / "cars" / "car_001_mesh.mat").write_bytes(b"no mat file at all")
    with pytest.raises(DataError, match=r"car_001_mesh\.mat is a text file, expected a MATLAB 5 file"):
        opened(read_cars3d(tmp_path / "cars", 64), tmp_path)


def test_all_broken_cars_are_named_at_once_and_foreign_ones_are_told(tmp_path: Path) -> None:
    write_cars(tmp_path / "cars", count=5)
    whole = (tmp_path / "cars" / "car_000_mesh.mat").read_bytes()
    (tmp_path / "cars" / "car_000_mesh.mat").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cars" / "car_001_mesh.mat").write_bytes(b"")
    header = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(512) + b"\x89HDF\r\n\x1a\n"
    (tmp_path / "cars" / "car_003_mesh.mat").write_bytes(header)
    with pytest.raises(DataError, match=r"cars3d: cannot read 3 of 5 \.mat files in .*/cars: ") as caught:
        opened(read_cars3d(tmp_path / "cars", 64), tmp_path)
    assert "car_000_mesh.mat is damaged (" in str(caught.value)
    assert "car_001_mesh.mat is empty, expected a MATLAB 5 file" in str(caught.value)
    assert "car_003_mesh.mat is a MATLAB 7.3 file, expected a MATLAB 5 file: save it with" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mat_file_cut_anywhere_is_reported(tmp_path: Path) -> None:
    write_cars(tmp_path / "cars", count=1)
    path = tmp_path / "cars" / "car_000_mesh.mat"
    whole = path.read_bytes()
    for length in (1, 60, 126, 128, 132, 140, 180, 250, 1000, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"car_000_mesh\.mat (is (truncated|damaged|a |empty)|has )"):
            opened(read_cars3d(tmp_path / "cars", 64), tmp_path)


def test_cars_are_found_by_the_rule_for_all_folders(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_cars(tmp_path / "elsewhere", count=2)
    (tmp_path / "cars" / ".cache").mkdir(parents=True)
    (tmp_path / "cars" / "._car_000_mesh.mat").write_bytes(b"\0\x05\x16\x07")
    (tmp_path / "cars" / "list.txt").write_text("cars")
    (tmp_path / "cars" / "linked").symlink_to(tmp_path / "elsewhere")
    dataset = opened(read_cars3d(tmp_path / "cars", 64), tmp_path)
    assert dataset.space is not None
    assert dataset.space.sizes == (4, 24, 2)
    assert "number of .mat files" in caplog.text
    assert "skipped: hidden (2), .txt (1)" in caplog.text
