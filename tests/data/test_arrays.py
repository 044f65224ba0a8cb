from __future__ import annotations

import io
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from raydis.data.arrays import open_array
from raydis.errors import DataError

IMAGES = np.empty((3000, 64, 64, 3), np.uint8)  # 37 MB: several blocks
IMAGES[...] = np.arange(3000).reshape(-1, 1, 1, 1) % 251


@pytest.fixture(scope="module", params=["stored", "compressed"])
def archive(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("npz") / f"{request.param}.npz"
    save = np.savez if request.param == "stored" else np.savez_compressed
    save(path, first=np.arange(5), images=IMAGES, words=np.array(["a", "bc"]), objects=np.array([{}], dtype=object))
    return path


def test_an_array_is_streamed_in_blocks(archive: Path) -> None:
    member = open_array("set", archive, ("images",), "uint8", (None, None, None, 3))
    blocks = list(member.blocks())
    assert len(blocks) > 2
    np.testing.assert_array_equal(np.concatenate(blocks), IMAGES)


def test_small_arrays_are_read_whole(archive: Path) -> None:
    assert open_array("set", archive, ("first",), "integers", (5,)).read().tolist() == [0, 1, 2, 3, 4]
    assert open_array("set", archive, ("words",), "text", (None,)).read().tolist() == ["a", "bc"]


def test_only_an_uncompressed_array_is_mapped_in_place(archive: Path) -> None:
    mapped = open_array("set", archive, ("images",), "uint8", (3000, 64, 64, 3)).mapped()
    if archive.stem == "compressed":
        assert mapped is None
    else:
        assert isinstance(mapped, np.memmap)
        np.testing.assert_array_equal(mapped, IMAGES)


@pytest.mark.parametrize(
    ("key", "dtype", "shape", "message"),
    [
        (
            "imgs",
            "uint8",
            (None,),
            r"set: .* has no array imgs, found first, images, words, objects: is it the official",
        ),
        ("first", "uint8", (None,), r"first in .* are int64 of shape \(5,\); expected uint8 of shape \(any,\)"),
        ("first", "integers", (7,), r"are int64 of shape \(5,\); expected integers of shape \(7,\)"),
        (
            "images",
            "uint8",
            (None, 64, 64),
            r"uint8 of shape \(3000, 64, 64, 3\); expected uint8 of shape \(any, 64, 64\)",
        ),
        ("objects", "integers", (None,), r"objects in .* are object of shape \(1,\); expected integers of shape"),
    ],
)
def test_another_key_type_or_shape_is_refused(archive: Path, key: str, dtype: str, shape: tuple, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_array("set", archive, (key,), dtype, shape)


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "exploded",)

    np.savez(tmp_path / "bomb.npz", images=np.array([Bomb()], dtype=object))
    with pytest.raises(DataError, match="are object"):
        open_array("set", tmp_path / "bomb.npz", ("images",), "uint8", (None,))
    assert not (tmp_path / "exploded").exists()


def test_an_array_in_fortran_order_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", images=np.asfortranarray(np.zeros((4, 3), np.uint8)))
    with pytest.raises(
        DataError, match=r"uint8 of shape \(4, 3\) in Fortran order; expected uint8 of shape \(any, 3\)"
    ):
        open_array("set", tmp_path / "f.npz", ("images",), "uint8", (None, 3))


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"set: no file .*no\.npz: correct data.path or download"):
        open_array("set", tmp_path / "no.npz", ("images",), "uint8", (None,))


def test_a_truncated_file_is_reported(archive: Path, tmp_path: Path) -> None:
    part = tmp_path / "part.npz"
    part.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    with pytest.raises(DataError, match=r"part\.npz is truncated \(a zip archive without its end\): download it again"):
        open_array("set", part, ("images",), "uint8", (None, 64, 64, 3))


def test_damage_within_the_images_is_reported_when_they_are_read(archive: Path, tmp_path: Path) -> None:
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 0xFF
    damaged = tmp_path / "damaged.npz"
    damaged.write_bytes(content)
    member = open_array("set", damaged, ("images",), "uint8", (None, 64, 64, 3))
    with pytest.raises(DataError, match=r"damaged\.npz is damaged \(.*\): replace it with a sound copy"):
        list(member.blocks())


def test_an_array_shorter_than_its_header_says_is_reported(tmp_path: Path) -> None:
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, {"descr": "|u1", "fortran_order": False, "shape": (100, 10)})
    content.write(bytes(500))
    with zipfile.ZipFile(tmp_path / "short.npz", "w") as file:
        file.writestr("images.npy", content.getvalue())
    with pytest.raises(
        DataError, match=r"short\.npz is truncated \(an array has 500 bytes of 1000\): download it again"
    ):
        open_array("set", tmp_path / "short.npz", ("images",), "uint8", (None, 10))


def test_a_single_array_is_read_from_an_npy_file_and_mapped_there(tmp_path: Path) -> None:
    images = np.arange(2 * 3 * 4 * 4, dtype=np.uint8).reshape(2, 3, 4, 4)
    with (tmp_path / "images.dat").open("wb") as file:
        np.save(file, images)
    array = open_array("set", tmp_path / "images.dat", ("images", ""), "uint8", (None, None, None))
    assert array.shape == (6, 4, 4)  # an axis a factor becomes one
    np.testing.assert_array_equal(array.read(), images.reshape(6, 4, 4))
    mapped = array.mapped()
    assert isinstance(mapped, np.memmap)
    np.testing.assert_array_equal(mapped, images.reshape(6, 4, 4))


def test_a_truncated_npy_file_is_reported(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((100, 10), np.uint8))
    content = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(content[:-300])
    with pytest.raises(DataError, match=r"a\.npy is truncated \(an array has 700 bytes of 1000\): download it again"):
        open_array("set", tmp_path / "a.npy", ("",), "uint8", (None, 10))


def test_an_array_without_a_name_is_not_taken_for_another(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((4, 3)))
    with pytest.raises(DataError, match=r"a\.npy has no array labels, found one array without a name: is it the"):
        open_array("set", tmp_path / "a.npy", ("labels",), "numbers", (None, 3))


def test_an_array_of_a_group_is_read_from_hdf5_in_whole_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raydis.data.arrays.BLOCK_BYTES", 64 * 30)
    images = np.random.default_rng(0).integers(0, 256, (100, 8, 8), np.uint8)
    with h5py.File(tmp_path / "a.npz", "w") as file:  # the suffix does not matter
        file.create_dataset("group/images", data=images, chunks=(40, 2, 4), compression="gzip")
    array = open_array("set", tmp_path / "a.npz", ("images", "group/images"), "uint8", (100, None, None))
    assert [len(block) for block in array.blocks()] == [40, 40, 20]  # a part of a chunk costs the whole
    np.testing.assert_array_equal(array.read(), images)
    assert array.mapped() is None


@pytest.mark.parametrize("cut", [60, 500, 2000, -1])
def test_a_truncated_hdf5_file_is_never_read(tmp_path: Path, cut: int) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"] = np.zeros((100, 8, 8), np.uint8)
    content = (tmp_path / "a.h5").read_bytes()
    (tmp_path / "a.h5").write_bytes(content[:cut])
    with pytest.raises(DataError, match=r"set: .*a\.h5 is truncated \(.*\): download it again"):
        open_array("set", tmp_path / "a.h5", ("images",), "uint8", (None, 8, 8))


FOREIGN = {
    "an HTML page": b"\n<!DOCTYPE html><html>Sign in</html>",
    "an HTML page, as a server sends": b"<html><body>Access denied</body></html>",
    "an XML document": b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n",
    "empty": b"",
    "compressed by gzip: unpack it": b"\x1f\x8b\x08" + bytes(20),
    "a MATLAB 5 file": b"MATLAB 5.0 MAT-file, Platform: GLNXA64" + bytes(200),
    "a text file": b"404: Not Found",
    "a tar archive": bytes(257) + b"ustar" + bytes(200),
    "a Python pickle": b"\x80\x04" + bytes(20),
    "of an unknown format": bytes(range(1, 256)),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_file_is_named_and_nobody_is_told_to_download_it_again(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a.npz").write_bytes(FOREIGN[kind])
    with pytest.raises(
        DataError, match=rf"set: .*a\.npz is {kind}.*expected an \.npz, \.npy or HDF5 file with"
    ) as caught:
        open_array("set", tmp_path / "a.npz", ("images",), "uint8", (None,))
    assert "download it again" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_archive_of_other_files_says_what_is_in_it(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("3dshapes.h5", b"x")
    with pytest.raises(DataError, match=r"a\.npz has no array images, found 3dshapes\.h5: is it the official file"):
        open_array("set", tmp_path / "a.npz", ("images",), "uint8", (None,))


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("raydis.data.arrays.signature", refuse)  # tests may run as root, who may read everything
    with pytest.raises(DataError, match=r"set: .*a\.npz cannot be read \(Permission denied\)"):
        open_array("set", tmp_path / "a.npz", ("images",), "uint8", (None,))
