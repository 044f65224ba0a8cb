from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import numpy as np
import pytest

from raydis.data.cache import (
    NUM_PIECES,
    PIECE_BYTES,
    cache_folder,
    cached_array,
    fetch,
    fetch_folder,
    fingerprint_files,
    is_stored,
)
from raydis.data.folder import FileKind
from raydis.errors import DataError
from raydis.store import LocalStore

SHAPE = (50, 8, 8, 3)
PNG = FileKind("pictures", lambda name: name.endswith(".png"))


def fill(out: np.ndarray) -> None:
    out[...] = np.arange(len(out)).reshape(-1, 1, 1, 1)


def test_the_cache_is_the_folder_given_else_that_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYDIS_CACHE", str(tmp_path / "environment"))
    assert cache_folder(tmp_path) == tmp_path
    assert cache_folder(None) == tmp_path / "environment"
    monkeypatch.delenv("RAYDIS_CACHE")
    assert cache_folder(None) == Path.home() / ".cache" / "raydis"


def test_an_array_is_made_once_and_memory_mapped_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "new" / "array.npy"
    made = cached_array(path, SHAPE, fill)
    again = cached_array(path, SHAPE, lambda out: pytest.fail("made twice"))
    assert isinstance(again, np.memmap)
    np.testing.assert_array_equal(made, again)
    np.testing.assert_array_equal(np.load(path)[:, 0, 0, 0], np.arange(50))


def test_an_array_of_another_type_comes_back_as_it_was(tmp_path: Path) -> None:
    values = np.linspace(-3.0, 3.0, 50).reshape(50, 1, 1, 1) * np.ones(SHAPE)

    def fill_halves(out: np.ndarray) -> None:
        out[...] = values

    made = cached_array(tmp_path / "array.npy", SHAPE, fill_halves, dtype=np.float16)
    assert made.dtype == np.float16
    np.testing.assert_array_equal(made, values.astype(np.float16))
    with pytest.raises(DataError, match=r"holds float16 \(50, 8, 8, 3\), expected uint8 .*delete it"):
        cached_array(tmp_path / "array.npy", SHAPE, fill)


def test_writing_to_a_cached_array_leaves_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "array.npy"
    cached_array(path, SHAPE, fill)[...] = 7
    assert (cached_array(path, SHAPE, fill)[9] == 9).all()


def test_a_failed_fill_leaves_nothing_behind(tmp_path: Path) -> None:
    def failing(out: np.ndarray) -> None:
        raise DataError("a picture is damaged")

    path = tmp_path / "array.npy"
    with pytest.raises(DataError, match="a picture is damaged"):
        cached_array(path, SHAPE, failing)
    assert [found.suffix for found in tmp_path.iterdir()] == [".lock"]
    assert (cached_array(path, SHAPE, fill)[9] == 9).all()


def test_of_several_that_race_one_makes_the_array_and_the_others_wait_for_it(tmp_path: Path) -> None:
    made = []

    def slowly(out: np.ndarray) -> None:
        made.append(out)
        time.sleep(0.2)
        fill(out)

    # Threads stand for processes: the lock belongs to an open file, and each of them opens its own.
    with ThreadPoolExecutor(4) as pool:
        arrays = list(pool.map(lambda _: cached_array(tmp_path / "array.npy", SHAPE, slowly), range(4)))
    assert len(made) == 1
    for array in arrays:
        assert (array[9] == 9).all()


def test_a_full_disk_is_reported_before_anything_is_rendered(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no room for 1152921504\.6 GB .*point RAYDIS_CACHE elsewhere"):
        cached_array(tmp_path / "array.npy", (1 << 40, 1024, 1024, 1), lambda out: pytest.fail("rendered"))


def test_a_folder_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"cannot write to the cache folder .*: point RAYDIS_CACHE elsewhere"):
        cached_array(tmp_path / "file" / "array.npy", SHAPE, fill)


def test_a_damaged_or_foreign_file_in_the_cache_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "array.npy"
    path.write_bytes(b"not an array")
    with pytest.raises(DataError, match=r"is damaged .*delete it and start again"):
        cached_array(path, SHAPE, fill)
    np.save(path, np.zeros((2, 2)))
    with pytest.raises(DataError, match=r"holds float64 \(2, 2\), expected uint8 .*delete it"):
        cached_array(path, SHAPE, fill)


def test_fingerprints_follow_contents_and_not_the_name_of_a_single_file(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"x" * 100_000)
    two.write_bytes(b"x" * 100_000)
    assert fingerprint_files({"": one}) == fingerprint_files({"": two})
    for position in (0, 65_536, 99_999):
        two.write_bytes(b"x" * position + b"y" + b"x" * (99_999 - position))
        assert fingerprint_files({"": one}) != fingerprint_files({"": two})


def test_fingerprints_of_folders_follow_names_sizes_and_every_byte_of_small_files(tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("a", "b", "c")}
    for path, content in zip(files.values(), (b"1234", b"", b"567"), strict=True):
        path.write_bytes(content)
    before = fingerprint_files(files)
    renamed = fingerprint_files({"a": files["a"], "b": files["b"], "d": files["c"]})
    files["c"].write_bytes(b"568")
    changed = fingerprint_files(files)
    files["a"].write_bytes(b"123")
    files["c"].write_bytes(b"4567")
    moved = fingerprint_files(files)
    assert len({before, renamed, changed, moved}) == 4


def test_fingerprints_of_large_files_read_a_bounded_part_of_them(tmp_path: Path) -> None:
    path = tmp_path / "large"
    size = 4 * NUM_PIECES * PIECE_BYTES
    with path.open("wb") as file:
        file.truncate(size)
    before = fingerprint_files({"": path})
    with path.open("r+b") as file:
        file.seek(PIECE_BYTES + PIECE_BYTES // 2)  # between the first two pieces
        file.write(b"x")
    assert fingerprint_files({"": path}) == before
    with path.open("r+b") as file:
        file.seek(size - 1)
        file.write(b"x")
    assert fingerprint_files({"": path}) != before


@pytest.mark.s3
def test_a_file_in_s3_is_downloaded_once_a_version(s3_bucket: str, tmp_path: Path) -> None:
    client = boto3.client("s3")
    client.put_object(Bucket=s3_bucket.removeprefix("s3://"), Key="sets/file.npz", Body=b"first")
    path = fetch(f"{s3_bucket}/sets/file.npz", tmp_path)
    assert path.read_bytes() == b"first"
    assert path.name == "file.npz"
    os.utime(path, (1, 1))
    assert fetch(f"{s3_bucket}/sets/file.npz", tmp_path) == path
    assert path.stat().st_mtime == 1  # not written again
    client.put_object(Bucket=s3_bucket.removeprefix("s3://"), Key="sets/file.npz", Body=b"second")
    assert fetch(f"{s3_bucket}/sets/file.npz", tmp_path).read_bytes() == b"second"
    assert path.read_bytes() == b"first"


@pytest.mark.s3
def test_a_folder_in_s3_is_downloaded_with_its_structure_and_completed_after_a_stop(
    s3_bucket: str, tmp_path: Path
) -> None:
    client = boto3.client("s3")
    for name in ("a.png", "sub/b.png", "sub/c.png"):
        client.put_object(Bucket=s3_bucket.removeprefix("s3://"), Key=f"faces/{name}", Body=name.encode())
    client.put_object(Bucket=s3_bucket.removeprefix("s3://"), Key="other.png", Body=b"other")
    folder = fetch_folder(f"{s3_bucket}/faces", tmp_path, PNG)
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.png")}
    assert found == {name: name.encode() for name in ("a.png", "sub/b.png", "sub/c.png")}
    (folder / "sub" / "b.png").unlink()
    assert fetch_folder(f"{s3_bucket}/faces", tmp_path, PNG) == folder
    assert (folder / "sub" / "b.png").read_bytes() == b"sub/b.png"


@pytest.mark.s3
def test_nothing_stored_in_s3_is_reported(s3_bucket: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"data.path={s3_bucket}/no.h5: nothing is stored there"):
        fetch(f"{s3_bucket}/no.h5", tmp_path)
    with pytest.raises(
        DataError, match=rf"data.path={s3_bucket}/no holds no pictures \(nothing is stored below it\): correct it"
    ):
        fetch_folder(f"{s3_bucket}/no", tmp_path, PNG)


def keep_changing(monkeypatch: pytest.MonkeyPatch, method: str, key: str, times: int) -> list[bytes]:
    """Make the store replace a key each time right after its tag was taken; what is written, in order."""
    written: list[bytes] = []
    answer = getattr(LocalStore, method)

    def answer_and_replace(store: LocalStore, *arguments: str) -> object:
        answered = answer(store, *arguments)
        answered = answered if isinstance(answered, str) else list(answered)
        if len(written) < times:
            written.append(b"version %d" % (len(written) + 1))
            store.write(key, written[-1])
        return answered

    monkeypatch.setattr(LocalStore, method, answer_and_replace)
    return written


def test_a_file_that_is_replaced_between_its_tag_and_its_bytes_is_looked_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    LocalStore(tmp_path / "store").write("set.npz", b"version 0")
    keep_changing(monkeypatch, "tag", "set.npz", times=2)
    path = fetch(str(tmp_path / "store" / "set.npz"), tmp_path / "cache")
    assert path.read_bytes() == b"version 2"
    for number in (0, 1, 2):  # no tag leads to the bytes of another
        LocalStore(tmp_path / "store").write("set.npz", b"version %d" % number)
        again = fetch(str(tmp_path / "store" / "set.npz"), tmp_path / "cache")
        assert again.read_bytes() == b"version %d" % number
        assert (again == path) == (number == 2)


def test_a_file_that_does_not_stay_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LocalStore(tmp_path / "store").write("set.npz", b"version 0")
    keep_changing(monkeypatch, "tag", "set.npz", times=100)
    with pytest.raises(
        DataError, match=r"set\.npz was replaced 5 times while it was read: start again when it is stable"
    ):
        fetch(str(tmp_path / "store" / "set.npz"), tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("set.npz"))


def test_a_file_that_is_removed_between_its_tag_and_its_bytes_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(tmp_path / "store")
    tag = store.write("set.npz", b"x")
    store.delete("set.npz")
    tags = iter([tag])
    monkeypatch.setattr(LocalStore, "tag", lambda *_: next(tags, None))
    with pytest.raises(DataError, match="nothing is stored there"):
        fetch(str(tmp_path / "store" / "set.npz"), tmp_path / "cache")


def test_a_folder_that_is_changed_while_it_is_read_is_listed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(tmp_path / "store")
    for key in ("a.png", "b.png"):
        store.write(key, key.encode())
    keep_changing(monkeypatch, "entries", "b.png", times=2)
    folder = fetch_folder(store.uri, tmp_path / "cache", PNG)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"a.png": b"a.png", "b.png": b"version 2"}
    assert fetch_folder(store.uri, tmp_path / "cache", PNG) == folder
    monkeypatch.undo()
    store.write("a.png", b"new")
    keep_changing(monkeypatch, "entries", "a.png", times=100)
    with pytest.raises(DataError, match=r"store was changed 5 times while it was read: start again when it is stable"):
        fetch_folder(store.uri, tmp_path / "cache", PNG)


@pytest.mark.s3
def test_only_the_files_of_a_set_are_downloaded_and_no_object_is_looked_up_alone(
    s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client, bucket = boto3.client("s3"), s3_bucket.removeprefix("s3://")
    strays = ("logs//run.txt", "logs//x.png", "a/../b.png", "._a.png", "a/.ipynb_checkpoints/a.png", "model.bin", "a/")
    names = ("a.png", "sub/b #%.png", "läufe/c.png")
    for name in (*names, *strays):
        client.put_object(Bucket=bucket, Key=f"faces/{name}", Body=name.encode())
    asked: list[str] = []
    monkeypatch.setattr("raydis.store.s3.S3Store.tag", lambda store, key: pytest.fail(f"{key} was looked up alone"))
    from raydis.store.s3 import S3Store

    download = S3Store.download

    def downloaded(store: S3Store, key: str, path: Path, *, if_match: str | None = None) -> None:
        asked.append(key)
        download(store, key, path, if_match=if_match)

    monkeypatch.setattr(S3Store, "download", downloaded)
    folder = fetch_folder(f"{s3_bucket}/faces", tmp_path, PNG)
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found == {name: name.encode() for name in names}
    assert sorted(asked) == sorted(names)
    assert "number of pictures in s3://" in caplog.text
    assert "skipped: hidden (3), .bin (1), .txt (1), keys that are no paths (1)" in caplog.text
    assert fetch_folder(f"{s3_bucket}/faces", tmp_path, PNG) == folder
    assert len(asked) == len(names)


@pytest.mark.s3
def test_a_folder_without_files_of_the_set_tells_what_is_there(s3_bucket: str, tmp_path: Path) -> None:
    client, bucket = boto3.client("s3"), s3_bucket.removeprefix("s3://")
    client.put_object(Bucket=bucket, Key="faces/notes.txt", Body=b"x")
    with pytest.raises(DataError, match=r"/faces holds no pictures \(skipped: \.txt \(1\)\): correct it or upload"):
        fetch_folder(f"{s3_bucket}/faces", tmp_path, PNG)


@pytest.mark.s3
def test_a_file_is_told_from_a_folder_in_s3(s3_bucket: str) -> None:
    client, bucket = boto3.client("s3"), s3_bucket.removeprefix("s3://")
    client.put_object(Bucket=bucket, Key="sets/a.npz", Body=b"x")
    assert is_stored(f"{s3_bucket}/sets/a.npz")
    for folder in ("", "/", "/sets", "/sets/", "/none"):
        assert not is_stored(f"{s3_bucket}{folder}")
