from __future__ import annotations

import operator
import random
from pathlib import Path

import pyarrow.fs
import pytest

from raydis.store import LocalStore, Location, StoreError, open_store, split_uri

# Names that people give their folders, and what a percent-encoded URI would make of them.
NAMES = [
    *("my runs", "exp#1", "a%20b", "50%", "läufe", "a?b", "a+b", "a&b", "it's", 'say "x"', "a@b", "a:b", "a=b;c,d"),
    *(
        "[x]",
        "{x}",
        "<x>",
        "a|b",
        "a^b",
        "a`b",
        "$HOME",
        "*",
        "(1)",
        "~x",
        "日本",
        "😀",
        "e\u0301",
        "%2F",
        "a%",
        "%%",
        " x ",
    ),
    *("#", "?", "a\u00a0b", "-x", "a.b", "...", "s3:", "100%#1?x=1&y"),
]
PRINTABLE = [chr(code) for code in range(0x20, 0x7F) if chr(code) not in "/\\"] + list("äßéñ日本語😀\u00a0\u200d")


@pytest.fixture(autouse=True)
def s3(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # is not contacted; without it pyarrow looks for AWS


def some_names(count: int) -> list[str]:
    """Folder names of up to 12 printable characters, of one or two parts."""
    rng = random.Random(0)
    texts = ["".join(rng.choices(PRINTABLE, k=rng.randint(1, 12))) for _ in range(2 * count)]
    parts = [text for text in texts if text not in (".", "..")]
    return [f"{one}/{two}" for one, two in zip(parts[::2], parts[1::2], strict=False)]


# ---- the same place in every form


@pytest.mark.parametrize("names", [NAMES, some_names(300)], ids=["people's", "random"])
def test_every_form_of_a_place_in_s3_names_the_same_keys(names: list[str]) -> None:
    for name in names:
        check_s3(name)


def check_s3(name: str) -> None:
    location = Location.parse(f"s3://bucket/{name}/")
    assert (location.bucket, location.path, location.folder) == ("bucket", name, None)
    assert str(location) == f"s3://bucket/{name}"  # what people read, type and paste into a console
    assert Location.parse(str(location)) == location
    _, path = pyarrow.fs.FileSystem.from_uri(location.pyarrow_uri)  # what Ray does with a storage path
    assert path == f"bucket/{name}"
    assert location.at_pyarrow_path(f"{path}/train/x") == location / "train/x" == Location.parse(f"{location}/train/x")


@pytest.mark.parametrize("names", [NAMES, some_names(300)], ids=["people's", "random"])
def test_every_form_of_a_local_place_names_the_same_folder(names: list[str], tmp_path: Path) -> None:
    for name in names:
        check_local(tmp_path / name)


def check_local(folder: Path) -> None:
    location = Location.parse(folder)
    assert (location.bucket, location.folder, str(location)) == (None, folder, str(folder))
    assert Location.parse(str(location)) == location
    assert Location.parse(folder.as_uri()) == location  # percent-encoded, as URIs of files are everywhere
    assert open_store(str(folder)).location == open_store(location).location == location
    _, path = pyarrow.fs.FileSystem.from_uri(location.pyarrow_uri)
    assert path == str(folder)
    assert location.at_pyarrow_path(f"{path}/train/x") == location / "train/x" == Location.parse(folder / "train/x")


@pytest.mark.parametrize("name", NAMES)
def test_what_one_form_writes_every_other_reads(name: str, tmp_path: Path) -> None:
    open_store(str(tmp_path / name)).write("a/b", b"x")
    location = LocalStore(tmp_path / name).location
    for form in (str(location), location, (tmp_path / name).as_uri()):
        assert open_store(form).read("a/b") == b"x"
    files = pyarrow.fs.FileSystem.from_uri(f"{location.pyarrow_uri}/a/b")
    assert files[0].open_input_file(files[1]).read() == b"x"


@pytest.mark.parametrize("name", ["my runs#1/50%", "a%20b"])
def test_a_store_in_s3_opens_again_from_what_it_prints(name: str) -> None:
    store = open_store(f"s3://bucket/{name}")
    assert store.uri == f"s3://bucket/{name}"
    assert open_store(store.uri).location == open_store(store.location).location == store.location


def test_a_whole_bucket_is_a_place(tmp_path: Path) -> None:
    for text in ("s3://bucket", "s3://bucket/"):
        location = Location.parse(text)
        assert (str(location), location.pyarrow_uri, str(location / "a b")) == (
            "s3://bucket",
            "s3://bucket",
            "s3://bucket/a b",
        )
        assert location.at_pyarrow_path("bucket") == location


def test_the_root_folder_is_a_place() -> None:
    assert str(Location.parse("/") / "a") == "/a"
    assert Location.parse("//a//b/") == Location.parse("/a/b")


def test_relative_folders_and_homes_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert open_store("runs/../my store/").uri == str(tmp_path / "my store")
    assert str(Location.parse("~/runs")) == "/home/someone/runs"
    assert str(Location.parse("runs", relative_to=Path("/elsewhere"))) == "/elsewhere/runs"
    assert str(Location.parse("/runs", relative_to=Path("/elsewhere"))) == "/runs"


def test_opening_a_store_makes_nothing(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "new"))
    assert list(store.list()) == []
    assert not (tmp_path / "new").exists()


# ---- what is refused at once


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("", "'' names no store"),
        ("gs://bucket/x", "names no store: use a folder, file:///folder or s3://bucket/prefix"),
        ("S3://bucket/x", "names no store"),
        ("s3:/bucket/x", "names no store"),  # would be a folder named `s3:`
        ("s3:bucket", "names no store"),
        ("file:/folder", "names no store"),
        ("s3://", "names no bucket"),
        ("s3:///prefix", "names no bucket"),
        ("s3://my bucket/x", "'my bucket' is not a bucket name"),
        ("s3://bücket", "is not a bucket name"),
        ("s3://bucket#1/x", "'bucket#1' is not a bucket name"),
        ("s3://bucket/a//b", "key 'a//b' is not allowed"),
        ("s3://bucket//a", "key '/a' is not allowed"),
        ("s3://bucket/../b", "is not allowed"),
        ("s3://bucket/a/./b", "is not allowed"),
        ("s3://bucket/a\\b", "is not allowed"),
        ("s3://bucket/.raydis-x", "is not allowed"),
        (f"s3://bucket/{'x' * 1025}", "is not allowed"),
        ("s3://bucket/a\nb", "holds control characters"),
        ("s3://bucket/a\u2028b", "holds control characters"),
        ("s3://bucket/a\udce4b", "or bytes that are not text"),  # Latin-1 on a command line
        ("/tmp/a\nb", "holds control characters"),
        ("/tmp/a\0b", "holds control characters"),
        ("/tmp/a\udce4b", "or bytes that are not text"),
        ("~nobody-of-that-name/x", "there is no such user"),
        ("file://host/folder", "write file:///folder, with three slashes"),
        ("file:///a#b", "write . as %3F, # as %23 and % as %25, or give the plain path"),
        ("file:///a#", "is not a file URI"),
        ("file:///a?b", "is not a file URI"),
        ("file:///50%", "is not a file URI"),
        ("file:///a%zz", "is not a file URI"),
        ("file:///l%E4ufe", "does not decode as UTF-8"),
        ("file:///a%00b", "holds control characters"),
    ],
)
def test_what_names_no_place_is_refused_in_one_line(uri: str, message: str) -> None:
    with pytest.raises(StoreError, match=message) as caught:
        open_store(uri)
    assert "\n" not in str(caught.value)
    str(caught.value).encode()  # it can be printed


def test_credentials_in_a_uri_are_refused_and_not_repeated() -> None:
    with pytest.raises(
        StoreError, match=r"^'bucket' is not a bucket name: .*Credentials come from the environment"
    ) as caught:
        open_store("s3://AKIA:secret@bucket/x")
    assert "secret" not in str(caught.value)


def test_a_child_that_could_leave_its_place_is_refused(tmp_path: Path) -> None:
    for location in (Location.parse("s3://bucket/a"), Location.parse(tmp_path)):
        for key in ("", "..", "/etc", "a//b", "a/../../b"):
            with pytest.raises(StoreError, match="is not allowed"):
                operator.truediv(location, key)


# ---- a file


@pytest.mark.parametrize(
    ("uri", "folder", "key"),
    [
        ("s3://bucket/a/b.h5", "s3://bucket/a", "b.h5"),
        ("s3://bucket/b.h5", "s3://bucket", "b.h5"),
        ("s3://bucket/my data#1/50%.h5", "s3://bucket/my data#1", "50%.h5"),
        ("/data/a/b.h5", "/data/a", "b.h5"),
        ("/b.h5", "/", "b.h5"),
        ("a/b.h5", "a", "b.h5"),
        ("b.h5", ".", "b.h5"),
        ("file:///data/my%20b.h5", "/data", "my b.h5"),
    ],
)
def test_a_file_uri_splits_into_folder_and_key(uri: str, folder: str, key: str) -> None:
    assert split_uri(uri) == (Location.parse(folder), key)


@pytest.mark.parametrize("uri", ["", "s3://bucket", "s3://bucket/", "/data/", "file:///", "/"])
def test_a_uri_without_a_file_name_is_refused(uri: str) -> None:
    with pytest.raises(StoreError, match=r"names no file: write s3://bucket/folder/file"):
        split_uri(uri)
