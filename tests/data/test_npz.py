from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from raydis.data.npz import open_member
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
    member = open_member("set", archive, "images", "uint8", (None, None, None, 3))
    blocks = list(member.blocks())
    assert len(blocks) > 2
    np.testing.assert_array_equal(np.concatenate(blocks), IMAGES)


def test_small_arrays_are_read_whole(archive: Path) -> None:
    assert open_member("set", archive, "first", "i", (5,)).read().tolist() == [0, 1, 2, 3, 4]
    assert open_member("set", archive, "words", "U", (None,)).read().tolist() == ["a", "bc"]


def test_only_an_uncompressed_array_is_mapped_in_place(archive: Path) -> None:
    mapped = open_member("set", archive, "images", "uint8", (3000, 64, 64, 3)).mapped()
    if archive.stem == "compressed":
        assert mapped is None
    else:
        assert isinstance(mapped, np.memmap)
        np.testing.assert_array_equal(mapped, IMAGES)


@pytest.mark.parametrize(
    ("key", "dtype", "shape", "message"),
    [
        ("imgs", "uint8", (None,), r"set: .* has no key imgs, found first, images, words, objects: is it the official"),
        ("first", "uint8", (None,), r"first in .* is int64 \(5,\), expected uint8 any"),
        ("first", "i", (7,), r"is int64 \(5,\), expected i 7"),
        ("images", "uint8", (None, 64, 64), r"is uint8 \(3000, 64, 64, 3\), expected uint8 anyx64x64"),
        ("objects", "i", (None,), r"objects in .* is object \(1,\), expected i any"),
    ],
)
def test_another_key_type_or_shape_is_refused(archive: Path, key: str, dtype: str, shape: tuple, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_member("set", archive, key, dtype, shape)


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "exploded",)

    np.savez(tmp_path / "bomb.npz", images=np.array([Bomb()], dtype=object))
    with pytest.raises(DataError, match="is object"):
        open_member("set", tmp_path / "bomb.npz", "images", "uint8", (None,))
    assert not (tmp_path / "exploded").exists()


def test_an_array_in_fortran_order_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", images=np.asfortranarray(np.zeros((4, 3), np.uint8)))
    with pytest.raises(DataError, match=r"uint8 \(4, 3\) in Fortran order, expected uint8 anyx3"):
        open_member("set", tmp_path / "f.npz", "images", "uint8", (None, 3))


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"set: no file .*no\.npz: correct data.path or download"):
        open_member("set", tmp_path / "no.npz", "images", "uint8", (None,))


def test_a_file_of_another_kind_is_reported(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"<html>Access denied</html>")
    with pytest.raises(DataError, match=r"a\.npz is truncated or of another format .*: download it again"):
        open_member("set", tmp_path / "a.npz", "images", "uint8", (None,))


def test_a_truncated_file_is_reported(archive: Path, tmp_path: Path) -> None:
    part = tmp_path / "part.npz"
    part.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    with pytest.raises(DataError, match="is truncated or of another format"):
        open_member("set", part, "images", "uint8", (None, 64, 64, 3))


def test_damage_within_the_images_is_reported_when_they_are_read(archive: Path, tmp_path: Path) -> None:
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 0xFF
    damaged = tmp_path / "damaged.npz"
    damaged.write_bytes(content)
    member = open_member("set", damaged, "images", "uint8", (None, 64, 64, 3))
    with pytest.raises(DataError, match=r"damaged\.npz is truncated or of another format"):
        list(member.blocks())


def test_an_array_shorter_than_its_header_says_is_reported(tmp_path: Path) -> None:
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, {"descr": "|u1", "fortran_order": False, "shape": (100, 10)})
    content.write(bytes(500))
    with zipfile.ZipFile(tmp_path / "short.npz", "w") as file:
        file.writestr("images.npy", content.getvalue())
    with pytest.raises(DataError, match=r"images in .*short\.npz has 500 bytes of 1000: download it again"):
        open_member("set", tmp_path / "short.npz", "images", "uint8", (None, 10))
