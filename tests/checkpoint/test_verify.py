"""Each file of a checkpoint is hashed once in a process, and what changes afterwards is not used in silence."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from raydis.checkpoint import verify as verification
from raydis.checkpoint.fetch import download_checkpoint, fetch_checkpoint
from raydis.checkpoint.open import Checkpoint, open_checkpoint
from raydis.checkpoint.verify import Hashed, hash_file
from raydis.checkpoint.write import write_checkpoint
from raydis.config import RunConfig
from raydis.editor.editor import Editor
from raydis.errors import CheckpointError
from raydis.registry import ModelRef, Registry
from raydis.serve.model import open_model
from raydis.store import LocalStore

Make = Callable[..., Path]
WEIGHTS = "weights.safetensors"
ONCE = {"config.json": 1, "metrics.json": 1, WEIGHTS: 1}


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file was hashed, by its name."""
    counts: Counter[str] = Counter()

    def counted(path: Path, *, keep: bool = False) -> Hashed:
        counts[path.name] += 1
        return hash_file(path, keep=keep)

    monkeypatch.setattr(verification, "hash_file", counted)
    return counts


def rewrite(path: Path, data: bytes) -> None:
    """Write into the very same file, as its clock ticks."""
    path.write_bytes(data)
    os.utime(path, ns=(0, 0))


def written(folder: Path) -> Path:
    write_checkpoint(
        folder,
        config=RunConfig(),
        weights={"weight": torch.arange(3.0)},
        metrics={},
        training=None,
        data_name="shapes3d_procedural",
        data_fingerprint="abc",
        images_seen=1,
    )
    return folder


@pytest.fixture
def opened(tmp_path: Path) -> Checkpoint:
    return open_checkpoint(written(tmp_path / "c"))


# ---- once


def test_from_a_trained_folder_to_a_served_version_each_file_is_hashed_once_where_it_lies(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hashed: Counter[str]
) -> None:
    monkeypatch.setenv("RAYDIS_CACHE", str(tmp_path / "cache"))
    registry = Registry(LocalStore(tmp_path / "runs"))
    trained = fetch_checkpoint(checkpoint, tmp_path / "cache")
    registry.set_alias("m", "best", registry.register(trained, "m"))
    Editor.open(trained)
    registry.register(trained.with_metrics({"scores": None}), "again")
    assert hashed == ONCE
    hashed.clear()
    Editor.open("m@best", storage=str(tmp_path / "runs"))  # the folder in the registry is another one
    assert hashed == ONCE
    hashed.clear()
    open_model(registry, ModelRef("m", 1))  # and so is a copy in the cache, when it arrives
    assert hashed == ONCE
    hashed.clear()
    open_model(registry, ModelRef("m", 1))  # or is found there
    assert hashed == ONCE


def test_a_checkpoint_is_hashed_once_when_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: Counter[str] = Counter()
    monkeypatch.setattr("raydis.checkpoint.write.hash_file", lambda path: counts.update([path.name]) or hash_file(path))
    written(tmp_path / "c")
    assert counts == ONCE


def test_tensors_are_read_again_and_again_without_another_hash(opened: Checkpoint, hashed: Counter[str]) -> None:
    for _ in range(3):
        assert torch.equal(opened.weights()["weight"], torch.arange(3.0))
    assert opened.files.path(WEIGHTS) == opened.folder / WEIGHTS
    assert not hashed


# ---- and what changes afterwards


@pytest.mark.parametrize("replaced", [False, True])
def test_weights_that_changed_after_they_were_verified_are_refused(opened: Checkpoint, replaced: bool) -> None:
    path = opened.folder / WEIGHTS
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    if replaced:
        path.unlink()
    rewrite(path, bytes(data))
    for use in (opened.weights, lambda: opened.files.path(WEIGHTS), lambda: Editor.open(opened)):
        with pytest.raises(
            CheckpointError, match=r"weights\.safetensors is damaged: expected sha256 \w+ \(\d+ bytes\)"
        ):
            use()


def test_weights_that_are_gone_are_refused(opened: Checkpoint) -> None:
    (opened.folder / WEIGHTS).unlink()
    for use in (opened.weights, lambda: opened.files.path(WEIGHTS)):
        with pytest.raises(
            CheckpointError,
            match=r"weights\.safetensors cannot be read: No such file.* Make it readable, fetch it again",
        ):
            use()


def test_a_file_that_was_only_touched_is_hashed_once_more_and_then_trusted_again(
    opened: Checkpoint, hashed: Counter[str]
) -> None:
    path = opened.folder / WEIGHTS
    rewrite(path, path.read_bytes())
    for _ in range(2):
        assert torch.equal(opened.weights()["weight"], torch.arange(3.0))
    assert hashed == {WEIGHTS: 1}
    rewrite(path, path.read_bytes())
    os.utime(path)
    assert opened.files.path(WEIGHTS) == opened.files.path(WEIGHTS) == path
    assert hashed == {WEIGHTS: 2}


def test_what_is_written_to_the_file_later_does_not_reach_the_tensors(opened: Checkpoint) -> None:
    weights, path = opened.weights(), opened.folder / WEIGHTS
    rewrite(path, bytes(path.stat().st_size))
    assert torch.equal(weights["weight"], torch.arange(3.0))


def test_configuration_and_metrics_are_those_that_were_verified(opened: Checkpoint, tmp_path: Path) -> None:
    for name in ("config.json", "metrics.json"):
        rewrite(opened.folder / name, b'{"seed": 9}')
    registry = Registry(LocalStore(tmp_path / "runs"))
    fetched = registry.fetch(ModelRef("m", registry.register(opened, "m")), tmp_path / "cache")
    assert (fetched.config, fetched.metrics, fetched.manifest) == (opened.config, {}, opened.manifest)


def test_a_file_that_changes_while_it_is_registered_makes_no_version(
    opened: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(tmp_path / "runs")
    upload = store.upload

    def disturbed(path: Path, key: str) -> None:
        rewrite(path, bytes(path.stat().st_size))
        upload(path, key)

    monkeypatch.setattr(store, "upload", disturbed)
    with pytest.raises(CheckpointError, match=r"weights\.safetensors is damaged"):
        Registry(store).register(opened, "m")
    assert Registry(store).versions("m") == []


def test_a_folder_that_is_replaced_by_another_checkpoint_is_not_mixed_with_it(opened: Checkpoint) -> None:
    write_checkpoint(
        opened.folder,
        config=RunConfig(),
        weights={"weight": torch.zeros(3)},
        metrics={},
        training=None,
        data_name="shapes3d_procedural",
        data_fingerprint="abc",
        images_seen=2,
    )
    with pytest.raises(CheckpointError, match=r"weights\.safetensors is damaged"):
        opened.weights()


def test_a_downloaded_copy_is_trusted_under_its_final_name(tmp_path: Path, hashed: Counter[str]) -> None:
    store = LocalStore(tmp_path / "store")
    for path in written(tmp_path / "c").iterdir():
        store.upload(path, f"runs/1/{path.name}")
    copy = download_checkpoint(store, "runs/1", tmp_path / "cache")
    assert torch.equal(copy.weights()["weight"], torch.arange(3.0))
    assert hashed == ONCE


# ---- metrics of a publication


def test_other_metrics_leave_the_folder_and_the_first_object_as_they_were(opened: Checkpoint) -> None:
    before = {path.name: path.read_bytes() for path in opened.folder.iterdir()}
    changed = opened.with_metrics({"loss": 0.5})
    assert (opened.metrics, changed.metrics) == ({}, {"loss": 0.5})
    assert changed.manifest.files["metrics.json"] != opened.manifest.files["metrics.json"]
    assert changed.manifest.files[WEIGHTS] == opened.manifest.files[WEIGHTS]
    assert torch.equal(changed.weights()["weight"], opened.weights()["weight"])
    assert {path.name: path.read_bytes() for path in opened.folder.iterdir()} == before


def test_metrics_that_json_lacks_are_not_published(opened: Checkpoint) -> None:
    with pytest.raises(CheckpointError, match=r"metrics\.json cannot hold these values"):
        opened.with_metrics({"loss": float("nan")})


def test_training_state_is_not_published_and_its_bytes_are_those_that_were_verified(make_checkpoint: Make) -> None:
    opened = open_checkpoint(make_checkpoint())
    assert opened.files.read("training.json") == b"{}"
    published = opened.with_metrics({})
    with pytest.raises(CheckpointError, match=r"cannot be resumed: it has no training\.safetensors"):
        published.training()


# ---- without torch


def test_listing_and_registering_need_no_torch() -> None:
    script = (
        "import sys, raydis.registry, raydis.registry.promotion, raydis.checkpoint.open, raydis.checkpoint.fetch\n"
        "assert not {'torch', 'safetensors', 'ray'} & set(sys.modules)"
    )
    path = os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")])
    subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, "PYTHONPATH": path})
