from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from raydis.store import LocalStore, StoreError
from raydis.store.local import LOCK_NAME

HOLD_LOCK = "import fcntl, sys; f = open(sys.argv[1], 'ab'); fcntl.flock(f, 2); print('held', flush=True); input()"


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def test_a_full_disk_keeps_the_old_value_and_leaves_nothing_behind(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store.write("key", b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"cannot write key in the store .*No space left on device"):
        store.write("key", b"new")
    assert store.read("key") == b"old"
    assert sorted(os.listdir(store.uri)) == [LOCK_NAME, "key"]


def test_a_key_below_another_key_says_why_it_cannot_be_a_folder(store: LocalStore) -> None:
    store.write("a", b"x")
    with pytest.raises(StoreError, match=r"cannot write a/b in the store .*(exists|Not a directory)"):
        store.write("a/b", b"y")
    assert store.tag("a/b") is None
    assert list(store.list("a/")) == []


def test_a_part_longer_than_a_file_name_may_be_says_so(store: LocalStore) -> None:
    with pytest.raises(StoreError, match=r"File name too long"):
        store.write("k" * 300, b"x")


def test_what_a_killed_writer_left_is_no_key(store: LocalStore) -> None:
    store.write("a/b", b"x")
    (Path(store.uri) / "a" / ".raydis-0123456789abcdef").write_bytes(b"half")
    assert list(store.list()) == ["a/b"]


def test_a_write_waits_for_the_lock_and_a_killed_holder_frees_it(store: LocalStore) -> None:
    store.write("key", b"old")
    lock = Path(store.uri) / LOCK_NAME
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD_LOCK, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder, ThreadPoolExecutor(1) as pool:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        writing = pool.submit(store.write, "key", b"new")
        assert not wait([writing], timeout=0.2).done
        assert store.read("key") == b"old"
        holder.send_signal(signal.SIGKILL)
        writing.result()
    assert store.read("key") == b"new"


def test_files_get_the_permissions_of_the_umask(store: LocalStore) -> None:
    before = os.umask(0o027)
    try:
        store.write("key", b"x")
    finally:
        os.umask(before)
    assert (Path(store.uri) / "key").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_refused_with_advice(
    code: int, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    expected = rf"^the file system of {store.uri} has no working locks \({os.strerror(code)}\), .* s3://bucket/prefix$"
    with pytest.raises(StoreError, match=expected):
        store.write("key", b"x", if_absent=True)
    assert os.listdir(store.uri) == [LOCK_NAME]
    assert list(store.list()) == []


def test_a_file_system_that_grants_one_lock_twice_is_refused(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    with pytest.raises(StoreError, match=r"no working locks \(two holders had the same lock at once\)"):
        store.write("key", b"x", if_absent=True)
    assert list(store.list()) == []


def test_the_lock_is_tried_out_once_a_store(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    flock = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", lambda file, how: asked.append(how) or flock(file, how))
    for number in range(3):
        store.write(f"{number}", b"x", if_absent=True)
    assert asked == [fcntl.LOCK_EX, fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_EX, fcntl.LOCK_EX]
