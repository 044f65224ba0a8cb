from __future__ import annotations

import errno
import json
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from raydis.checkpoint.fetch import default_cache, download_checkpoint, fetch_checkpoint
from raydis.errors import CheckpointError, StoreError
from raydis.store import LocalStore

Make = Callable[..., Path]
CHECKOUT = Path(__file__).resolve().parents[2]
FETCH_AND_LOAD = """
import sys, time
from pathlib import Path
from raydis.checkpoint.fetch import download_checkpoint
from raydis.store import open_store
for _ in range(20):
    folder = download_checkpoint(open_store(sys.argv[1]), "runs/1", Path(sys.argv[2])).folder
    for name in ("config.json", "metrics.json", "weights.safetensors", "manifest.json"):
        time.sleep(0.01)
        assert (folder / name).read_bytes() or name == "config.json", name
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def fetched(store: LocalStore, cache: Path) -> Path:
    """The folder of the copy of runs/1."""
    return download_checkpoint(store, "runs/1", cache).folder


def upload(folder: Path, store: LocalStore, prefix: str) -> None:
    for path in folder.iterdir():
        store.upload(path, f"{prefix}/{path.name}")


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def test_the_cache_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAYDIS_CACHE", str(tmp_path))
    assert default_cache() == tmp_path / "checkpoints"


def test_a_checkpoint_arrives_as_it_was_sent(make_checkpoint: Make, store: LocalStore, tmp_path: Path) -> None:
    folder = make_checkpoint()
    upload(folder, store, "runs/1")
    assert contents(fetched(store, tmp_path / "cache")) == contents(folder)


def test_a_second_fetch_downloads_nothing(make_checkpoint: Make, store: LocalStore, tmp_path: Path) -> None:
    upload(make_checkpoint(), store, "runs/1")
    first = fetched(store, tmp_path / "cache")
    store.delete("runs/1/weights.safetensors")
    assert fetched(store, tmp_path / "cache") == first


def test_another_checkpoint_under_the_same_prefix_gets_another_folder(
    make_checkpoint: Make, store: LocalStore, tmp_path: Path
) -> None:
    upload(make_checkpoint(), store, "runs/1")
    first = fetched(store, tmp_path / "cache")
    upload(make_checkpoint("second", weights=b"other"), store, "runs/1")
    second = fetched(store, tmp_path / "cache")
    assert (first / "weights.safetensors").read_bytes() == b"weights"
    assert (second / "weights.safetensors").read_bytes() == b"other"


def damage(folder: Path) -> None:
    """Truncate one file, as a cleaner or a full disk does."""
    (folder / "metrics.json").write_bytes(b"")


def test_a_copy_that_was_damaged_is_left_alone_and_another_one_is_fetched(
    make_checkpoint: Make, store: LocalStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_checkpoint()
    upload(folder, store, "runs/1")
    first = fetched(store, tmp_path / "cache")
    damage(first)
    damaged = contents(first)
    second = fetched(store, tmp_path / "cache")
    assert second.name == f"{first.name}-2"
    assert contents(second) == contents(folder)
    assert contents(first) == damaged
    assert fetched(store, tmp_path / "cache") == second
    assert f"{first}: metrics.json is damaged" in caplog.text
    assert "raydis fetches another copy; remove the damaged one when no process uses it" in caplog.text
    damage(second)
    assert fetched(store, tmp_path / "cache").name == f"{first.name}-3"


@pytest.mark.parametrize("stranger", ["notes.txt", "manifest.json"])
def test_what_a_user_put_into_a_copy_is_not_removed(
    make_checkpoint: Make, store: LocalStore, tmp_path: Path, stranger: str
) -> None:
    folder = make_checkpoint()
    upload(folder, store, "runs/1")
    first = fetched(store, tmp_path / "cache")
    (first / stranger).write_bytes(b"mine")
    assert contents(fetched(store, tmp_path / "cache")) == contents(folder)
    assert (first / stranger).read_bytes() == b"mine"


def test_a_reader_that_maps_a_copy_is_not_disturbed_when_it_is_found_damaged(
    make_checkpoint: Make, store: LocalStore, tmp_path: Path
) -> None:
    weights = bytes(range(256)) * 256
    upload(make_checkpoint(weights=weights), store, "runs/1")
    first = fetched(store, tmp_path / "cache")
    with (
        (first / "weights.safetensors").open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view,
    ):
        damage(first)
        second = fetched(store, tmp_path / "cache")
        assert second != first
        assert view[:] == weights
        assert (first / "config.json").read_bytes() == b"{}"  # what it has yet to open is there as well
        assert os.stat(first / "weights.safetensors").st_ino == os.fstat(file.fileno()).st_ino


def test_processes_that_fetch_a_damaged_copy_at_once_never_lose_the_folder_they_were_given(
    make_checkpoint: Make, store: LocalStore, tmp_path: Path
) -> None:
    upload(make_checkpoint(weights=bytes(1 << 20)), store, "runs/1")
    cache = tmp_path / "cache"
    first = fetched(store, cache)
    path = os.pathsep.join([str(CHECKOUT), os.environ.get("PYTHONPATH", "")])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", FETCH_AND_LOAD, store.uri, str(cache)], env={**os.environ, "PYTHONPATH": path}
        )
        for _ in range(4)
    ]
    while any(process.poll() is None for process in processes):
        for copy in list(cache.iterdir()) if len(os.listdir(cache)) < 6 else []:
            if ".tmp-" not in copy.name:
                (copy / "notes.txt").write_bytes(b"")  # verification calls it damaged; its files are sound
        time.sleep(0.05)
    assert [process.returncode for process in processes] == [0] * 4
    assert first.exists()
    assert not [copy for copy in cache.iterdir() if ".tmp-" in copy.name]


def test_a_copy_that_cannot_be_read_is_passed_over(make_checkpoint: Make, store: LocalStore, tmp_path: Path) -> None:
    folder = make_checkpoint()
    upload(folder, store, "runs/1")
    first = fetched(store, tmp_path / "cache")
    (first / "weights.safetensors").unlink()
    (first / "weights.safetensors").mkdir()
    assert contents(fetched(store, tmp_path / "cache")) == contents(folder)


def test_a_cache_that_cannot_be_written_to_says_so(make_checkpoint: Make, store: LocalStore, tmp_path: Path) -> None:
    upload(make_checkpoint(), store, "runs/1")
    (tmp_path / "cache").write_bytes(b"a file")
    with pytest.raises(StoreError, match=r"cannot download runs/1/\S+ to .*cache"):
        fetched(store, tmp_path / "cache")


def test_a_full_disk_at_the_last_file_of_a_copy_says_so_and_leaves_nothing(
    make_checkpoint: Make, store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Path, __: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    upload(make_checkpoint(), store, "runs/1")
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StoreError, match=r"cannot keep .*runs/1 in .*cache \(No space left on device\): make room"):
        fetched(store, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_damaged_object_is_refused_and_not_cached(make_checkpoint: Make, store: LocalStore, tmp_path: Path) -> None:
    upload(make_checkpoint(), store, "runs/1")
    store.write("runs/1/weights.safetensors", b"w3ights")
    with pytest.raises(CheckpointError, match=r"cannot fetch .*runs/1: .*weights\.safetensors is damaged"):
        fetched(store, tmp_path / "cache")
    store.delete("runs/1/weights.safetensors")
    with pytest.raises(
        CheckpointError, match=r"runs/1: it lacks weights\.safetensors, which its manifest lists: use another"
    ):
        fetched(store, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_manifest_that_names_a_file_elsewhere_is_refused(
    make_checkpoint: Make, store: LocalStore, tmp_path: Path
) -> None:
    upload(make_checkpoint(), store, "runs/1")
    tree = json.loads(store.read("runs/1/manifest.json"))
    tree["files"]["../../escaped"] = tree["files"]["config.json"]
    store.write("runs/1/manifest.json", json.dumps(tree).encode())
    with pytest.raises(CheckpointError, match=r"files are \['\.\./\.\./escaped'"):
        fetched(store, tmp_path / "cache")


def test_fetching_the_same_checkpoint_at_once_gives_one_whole_folder(
    make_checkpoint: Make, store: LocalStore, tmp_path: Path
) -> None:
    folder = make_checkpoint(weights=bytes(1 << 20))
    upload(folder, store, "runs/1")
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: fetched(store, tmp_path / "cache"), range(16)))
    assert len(found) == 1
    assert contents(found.pop()) == contents(folder)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_copy_that_another_process_finishes_first_is_used_and_no_second_one_is_made(
    make_checkpoint: Make, store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(make_checkpoint(), store, "runs/1")
    cache = tmp_path / "cache"
    download = LocalStore.download

    def overtaken(self: LocalStore, key: str, path: Path) -> None:
        monkeypatch.setattr(LocalStore, "download", download)
        others.append(fetched(store, cache))
        download(self, key, path)

    others: list[Path] = []
    monkeypatch.setattr(LocalStore, "download", overtaken)
    assert [fetched(store, cache)] == others
    assert list(cache.iterdir()) == others


def test_a_local_checkpoint_is_used_where_it_lies_after_a_check(make_checkpoint: Make, tmp_path: Path) -> None:
    folder = make_checkpoint()
    assert fetch_checkpoint(str(folder), tmp_path / "cache").folder == folder
    assert not (tmp_path / "cache").exists()
    (folder / "metrics.json").unlink()
    with pytest.raises(CheckpointError, match=r"lacks metrics\.json"):
        fetch_checkpoint(folder, tmp_path / "cache")
