from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from raydis.errors import CheckpointError
from raydis.registry.transfer import default_cache, download_checkpoint, fetch_checkpoint
from raydis.store import LocalStore

Make = Callable[..., Path]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


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
    assert contents(download_checkpoint(store, "runs/1", tmp_path / "cache")) == contents(folder)


def test_a_second_fetch_downloads_nothing(make_checkpoint: Make, store: LocalStore, tmp_path: Path) -> None:
    upload(make_checkpoint(), store, "runs/1")
    first = download_checkpoint(store, "runs/1", tmp_path / "cache")
    store.delete("runs/1/weights.safetensors")
    assert download_checkpoint(store, "runs/1", tmp_path / "cache") == first


def test_another_checkpoint_under_the_same_prefix_gets_another_folder(
    make_checkpoint: Make, store: LocalStore, tmp_path: Path
) -> None:
    upload(make_checkpoint(), store, "runs/1")
    first = download_checkpoint(store, "runs/1", tmp_path / "cache")
    upload(make_checkpoint("second", weights=b"other"), store, "runs/1")
    second = download_checkpoint(store, "runs/1", tmp_path / "cache")
    assert (first / "weights.safetensors").read_bytes() == b"weights"
    assert (second / "weights.safetensors").read_bytes() == b"other"


def test_a_cached_copy_that_was_damaged_is_fetched_again(
    make_checkpoint: Make, store: LocalStore, tmp_path: Path
) -> None:
    folder = make_checkpoint()
    upload(folder, store, "runs/1")
    cached = download_checkpoint(store, "runs/1", tmp_path / "cache")
    (cached / "weights.safetensors").write_bytes(b"")
    assert contents(download_checkpoint(store, "runs/1", tmp_path / "cache")) == contents(folder)


def test_a_damaged_object_is_refused_and_not_cached(make_checkpoint: Make, store: LocalStore, tmp_path: Path) -> None:
    upload(make_checkpoint(), store, "runs/1")
    store.write("runs/1/weights.safetensors", b"w3ights")
    with pytest.raises(CheckpointError, match=r"cannot fetch .*runs/1: .*weights\.safetensors is damaged"):
        download_checkpoint(store, "runs/1", tmp_path / "cache")
    store.delete("runs/1/weights.safetensors")
    with pytest.raises(CheckpointError, match=r"runs/1 lacks weights\.safetensors, which its manifest lists"):
        download_checkpoint(store, "runs/1", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_manifest_that_names_a_file_elsewhere_is_refused(
    make_checkpoint: Make, store: LocalStore, tmp_path: Path
) -> None:
    upload(make_checkpoint(), store, "runs/1")
    tree = json.loads(store.read("runs/1/manifest.json"))
    tree["files"]["../../escaped"] = tree["files"]["config.json"]
    store.write("runs/1/manifest.json", json.dumps(tree).encode())
    with pytest.raises(CheckpointError, match=r"files are \['\.\./\.\./escaped'"):
        download_checkpoint(store, "runs/1", tmp_path / "cache")


def test_fetching_the_same_checkpoint_at_once_gives_one_whole_folder(
    make_checkpoint: Make, store: LocalStore, tmp_path: Path
) -> None:
    folder = make_checkpoint(weights=bytes(1 << 20))
    upload(folder, store, "runs/1")
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: download_checkpoint(store, "runs/1", tmp_path / "cache"), range(16)))
    assert len(found) == 1
    assert contents(found.pop()) == contents(folder)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_local_checkpoint_is_used_where_it_lies_after_a_check(make_checkpoint: Make, tmp_path: Path) -> None:
    folder = make_checkpoint()
    assert fetch_checkpoint(str(folder), tmp_path / "cache") == folder
    assert not (tmp_path / "cache").exists()
    (folder / "metrics.json").unlink()
    with pytest.raises(CheckpointError, match=r"lacks metrics\.json"):
        fetch_checkpoint(folder, tmp_path / "cache")
