"""What every store promises, checked on each of them."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.fs
import pytest

import raydis
from raydis.store import Location, Store, StoreConflict, StoreError, StoreMissing, open_store

KEYS_TO_REFUSE = (
    *("", ".", "a/", "a//b", "a/./b", "/etc/passwd", "../outside", "a/../../outside"),
    *("a\\b", "a\nb", "a\0b", ".raydis-lock", "a/.raydis-x", "k" * 1025),
)
COUNT_UP = """
import json, sys
from raydis.store import StoreConflict, open_store
store = open_store(sys.argv[1])
for _ in range(int(sys.argv[2])):
    while True:
        tag = store.tag("counter.json")
        try:
            store.write("counter.json", json.dumps(json.loads(store.read("counter.json")) + 1).encode(), if_match=tag)
            break
        except StoreConflict:
            pass
"""


def test_what_is_written_is_read_back_byte_for_byte(store: Store) -> None:
    data = bytes(range(256)) * 3
    store.write("a/b.bin", data)
    assert store.read("a/b.bin") == data


def test_empty_bytes_are_a_value(store: Store) -> None:
    store.write("empty", b"")
    assert store.read("empty") == b""
    assert store.exists("empty")


def test_a_second_write_replaces_the_first(store: Store) -> None:
    store.write("key", b"a long first value")
    store.write("key", b"second")
    assert store.read("key") == b"second"


def test_write_returns_the_tag_that_tag_reports(store: Store) -> None:
    first = store.write("key", b"one")
    assert store.tag("key") == first
    second = store.write("key", b"two")
    assert store.tag("key") == second != first


def test_a_missing_key_has_no_tag_and_cannot_be_read(store: Store, tmp_path: Path) -> None:
    store.write("there", b"")
    assert store.tag("missing") is None
    assert not store.exists("missing")
    with pytest.raises(StoreMissing, match=rf"no key missing in {re.escape(store.uri)}"):
        store.read("missing")
    with pytest.raises(StoreMissing, match="no key missing"):
        store.download("missing", tmp_path / "out" / "file")
    assert not list((tmp_path / "out").glob("*"))


def test_a_folder_of_keys_is_not_a_key(store: Store) -> None:
    store.write("a/b/c", b"")
    assert store.tag("a/b") is None
    assert not store.exists("a")
    with pytest.raises(StoreMissing, match="no key a/b in"):
        store.read("a/b")


def test_reopening_the_uri_finds_the_same_keys(store: Store) -> None:
    store.write("a/b", b"kept")
    assert open_store(store.uri).read("a/b") == b"kept"


def test_listing_is_sorted_and_takes_the_prefix_as_text(store: Store) -> None:
    for key in ("b", "a/b/c", "a/bc", "a/b/B", "a/b.json", "ab", "a/é"):
        store.write(key, b"x")
    assert list(store.list()) == ["a/b.json", "a/b/B", "a/b/c", "a/bc", "a/é", "ab", "b"]
    assert list(store.list("a/b/")) == ["a/b/B", "a/b/c"]
    assert list(store.list("a/b")) == ["a/b.json", "a/b/B", "a/b/c", "a/bc"]
    assert list(store.list("nothing/here")) == []


def test_entries_list_the_same_keys_with_their_tags_and_sizes(store: Store) -> None:
    written = {key: store.write(key, key.encode() * 3) for key in ("b", "a/b/c", "a/bc", "a/é #%")}
    entries = list(store.entries())
    assert [entry.key for entry in entries] == list(store.list())
    assert {entry.key: entry.tag for entry in entries} == written
    assert [entry.size_bytes for entry in entries] == [len(entry.key.encode()) * 3 for entry in entries]
    assert [entry.key for entry in store.entries("a/b/")] == ["a/b/c"]
    assert list(store.entries("nothing/here")) == []
    with pytest.raises(StoreError, match="is not allowed"):
        store.entries("../")


def test_a_store_that_was_never_written_to_is_empty(store: Store) -> None:
    assert list(store.list()) == []
    assert store.tag("a") is None
    store.delete("a")


def test_deleting_removes_one_key_and_forgives_an_absent_one(store: Store) -> None:
    store.write("a/b", b"x")
    store.write("a/c", b"y")
    store.delete("a/b")
    store.delete("a/b")
    store.delete("a")
    assert list(store.list()) == ["a/c"]


def test_keys_that_could_leave_the_store_are_refused_by_every_method(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x")
    calls = (
        store.read,
        store.tag,
        store.exists,
        store.delete,
        lambda key: store.write(key, b"x"),
        lambda key: store.upload(file, key),
        lambda key: store.download(key, tmp_path / "copy"),
    )
    for key, call in itertools.product(KEYS_TO_REFUSE, calls):
        with pytest.raises(StoreError, match="is not allowed: use a relative path"):
            call(key)


def test_a_prefix_that_could_leave_the_store_is_refused_before_the_first_key(store: Store) -> None:
    with pytest.raises(StoreError, match="is not allowed"):
        store.list("../")


def test_if_absent_writes_once(store: Store) -> None:
    store.write("claim", b"first", if_absent=True)
    with pytest.raises(StoreConflict, match="claim"):
        store.write("claim", b"second", if_absent=True)
    assert store.read("claim") == b"first"


def test_if_match_writes_only_over_the_version_that_was_read(store: Store) -> None:
    tag = store.write("key", b"one")
    store.write("key", b"two", if_match=tag)
    with pytest.raises(StoreConflict, match="key"):
        store.write("key", b"three", if_match=tag)
    assert store.read("key") == b"two"


def test_if_match_fails_where_the_key_is_gone(store: Store) -> None:
    tag = store.write("key", b"one")
    store.delete("key")
    with pytest.raises(StoreConflict, match="found nothing there"):
        store.write("key", b"two", if_match=tag)
    assert not store.exists("key")


def test_two_conditions_at_once_are_a_mistake(store: Store) -> None:
    with pytest.raises(ValueError, match="not both"):
        store.write("key", b"", if_absent=True, if_match="tag")


def test_of_many_threads_that_claim_a_key_exactly_one_wins(store: Store) -> None:
    def claim(number: int) -> bool:
        try:
            store.write("claim", str(number).encode(), if_absent=True)
        except StoreConflict:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(claim, range(32)))
    assert won.count(True) == 1
    assert store.read("claim") == str(won.index(True)).encode()


def test_no_count_is_lost_between_processes_that_compare_and_set(store: Store) -> None:
    store.write("counter.json", b"0")
    path = os.pathsep.join([str(Path(raydis.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    processes = [
        subprocess.Popen([sys.executable, "-c", COUNT_UP, store.uri, "8"], env={**os.environ, "PYTHONPATH": path})
        for _ in range(3)
    ]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert json.loads(store.read("counter.json")) == 24


def test_readers_see_whole_values_while_a_writer_replaces_them(store: Store) -> None:
    values = [letter * 200_000 for letter in (b"a", b"b")]
    store.write("key", values[0])
    with ThreadPoolExecutor(2) as pool:
        writing = pool.submit(lambda: [store.write("key", values[turn % 2]) for turn in range(30)])
        while not writing.done():
            assert store.read("key") in values
        writing.result()


def test_a_file_of_several_megabytes_travels_both_ways(store: Store, tmp_path: Path) -> None:
    data = os.urandom(9 << 20)  # above boto3's threshold of 8 MiB, so that S3 gets a multipart upload
    (tmp_path / "in").write_bytes(data)
    store.upload(tmp_path / "in", "weights/big.bin")
    store.download("weights/big.bin", tmp_path / "new" / "folder" / "out")
    assert (tmp_path / "new" / "folder" / "out").read_bytes() == data
    assert [file.name for file in (tmp_path / "new" / "folder").iterdir()] == ["out"]
    assert list(store.list()) == ["weights/big.bin"]


def test_a_download_replaces_an_older_file(store: Store, tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"an older and longer file")
    store.write("key", b"new")
    store.download("key", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"new"


def test_a_download_of_one_version_is_that_version_or_a_conflict(store: Store, tmp_path: Path) -> None:
    old = store.write("key", b"old")
    store.download("key", tmp_path / "old", if_match=old)
    assert (tmp_path / "old").read_bytes() == b"old"
    new = store.write("key", b"new")
    with pytest.raises(StoreConflict, match="key"):
        store.download("key", tmp_path / "late", if_match=old)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["old"]
    store.download("key", tmp_path / "late", if_match=new)
    assert (tmp_path / "late").read_bytes() == b"new"
    store.delete("key")
    with pytest.raises(StoreMissing):
        store.download("key", tmp_path / "gone", if_match=new)


def test_an_empty_value_is_downloaded_by_its_version_too(store: Store, tmp_path: Path) -> None:
    store.download("key", tmp_path / "out", if_match=store.write("key", b""))
    assert (tmp_path / "out").read_bytes() == b""


def test_uploading_a_file_that_is_not_there_says_so(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"absent\.bin to key .*No such file"):
        store.upload(tmp_path / "absent.bin", "key")
    assert not store.exists("key")


def test_a_download_that_cannot_be_written_says_so(store: Store, tmp_path: Path) -> None:
    store.write("key", b"x")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match=r"cannot download key .*to .*file/below"):
        store.download("key", tmp_path / "file" / "below")


@pytest.mark.s3
@pytest.mark.parametrize(
    "name", ["my runs#1/50%", "a%20b", "läufe?x=1&y", 'it\'s "x"+y', "日本 😀", "a=b;c,d@e:f~(*)[x]{y}<z>|^`$"]
)
def test_boto3_and_pyarrow_find_each_others_files_in_s3(name: str, s3_uri: str) -> None:
    bucket = Location.parse(s3_uri).bucket
    store = open_store(f"s3://{bucket}/{name}")
    store.write("from boto3/a#b", b"one")
    files, path = pyarrow.fs.FileSystem.from_uri((store.location / "from pyarrow").pyarrow_uri)
    with files.open_output_stream(f"{path}/c%d") as stream:
        stream.write(b"two")
    assert files.open_input_file(f"{bucket}/{name}/from boto3/a#b").read() == b"one"
    assert open_store(str(store.location.at_pyarrow_path(path))).read("c%d") == b"two"
    assert list(open_store(store.uri).list()) == ["from boto3/a#b", "from pyarrow/c%d"]
    assert list(open_store(f"s3://{bucket}").list()) == [f"{name}/from boto3/a#b", f"{name}/from pyarrow/c%d"]
