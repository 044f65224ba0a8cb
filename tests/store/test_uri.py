from __future__ import annotations

from pathlib import Path

import pytest

from raydis.store import LocalStore, StoreError, open_store, split_uri


def test_a_plain_path_and_its_file_uri_open_the_same_folder(tmp_path: Path) -> None:
    open_store(f"file://{tmp_path}/my%20store").write("a/b", b"x")
    assert open_store(str(tmp_path / "my store")).read("a/b") == b"x"


def test_a_relative_folder_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_store("runs/../store/")
    assert isinstance(store, LocalStore)
    assert store.uri == str(tmp_path / "store")


def test_opening_a_store_makes_nothing(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "new"))
    assert list(store.list()) == []
    assert not (tmp_path / "new").exists()


def test_an_s3_uri_keeps_bucket_and_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    assert open_store("s3://bucket/team/models/").uri == "s3://bucket/team/models"
    assert open_store("s3://bucket").uri == "s3://bucket"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("", "'' names no store"),
        ("gs://bucket/x", "names no store: use a folder, file:///folder or s3://bucket/prefix"),
        ("s3://", "names no bucket"),
        ("s3:///prefix", "names no bucket"),
        ("s3://bucket/a//b", "key 'a//b' is not allowed"),
        ("s3://bucket/../b", "is not allowed"),
        ("file://host/folder", "write file:///folder, with three slashes"),
    ],
)
def test_a_uri_that_names_no_store_is_refused(uri: str, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        open_store(uri)


@pytest.mark.parametrize(
    ("uri", "root", "key"),
    [
        ("s3://bucket/a/b.h5", "s3://bucket/a", "b.h5"),
        ("s3://bucket/b.h5", "s3://bucket", "b.h5"),
        ("/data/a/b.h5", "/data/a", "b.h5"),
        ("/b.h5", "/", "b.h5"),
        ("a/b.h5", "a", "b.h5"),
        ("b.h5", ".", "b.h5"),
        ("file:///data/my%20b.h5", "/data", "my b.h5"),
    ],
)
def test_a_file_uri_splits_into_store_and_key(uri: str, root: str, key: str) -> None:
    assert split_uri(uri) == (root, key)


@pytest.mark.parametrize("uri", ["", "s3://bucket", "s3://bucket/", "s3://", "/data/", "file:///"])
def test_a_uri_without_a_file_name_is_refused(uri: str) -> None:
    with pytest.raises(StoreError, match=r"names no file: write s3://bucket/folder/file"):
        split_uri(uri)
