from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from raydis.checkpoint.manifest import MODEL_FILES, parse_manifest
from raydis.checkpoint.text import from_json
from raydis.checkpoint.verify import verify
from raydis.errors import CheckpointError


def test_a_manifest_survives_its_own_json(make_checkpoint: Callable[..., Path]) -> None:
    manifest = verify(make_checkpoint()).manifest
    assert parse_manifest(manifest.to_json(), "here") == manifest


def test_publishing_leaves_out_the_training_files_and_nothing_else(make_checkpoint: Callable[..., Path]) -> None:
    manifest = verify(make_checkpoint()).manifest
    published = manifest.without_training()
    assert (manifest.can_resume, published.can_resume) == (True, False)
    assert published.files == {name: manifest.files[name] for name in MODEL_FILES}
    assert published.model_dump(exclude={"files"}) == manifest.model_dump(exclude={"files"})


def test_half_a_training_state_is_refused(make_checkpoint: Callable[..., Path]) -> None:
    folder = make_checkpoint()
    text = (folder / "manifest.json").read_text().replace("training.json", "training.jsn")
    with pytest.raises(CheckpointError, match=r"and both or none of training\.safetensors, training\.json"):
        parse_manifest(text.encode(), "here")


@pytest.mark.parametrize("digest", ["", "abc", "G" * 64, "A" * 64])
def test_only_a_sha256_in_lower_case_hex_is_a_hash(make_checkpoint: Callable[..., Path], digest: str) -> None:
    folder = make_checkpoint()
    manifest = verify(folder).manifest
    text = manifest.to_json().decode().replace(manifest.files["metrics.json"].sha256, digest)
    with pytest.raises(CheckpointError, match=r"files\.metrics\.json\.sha256: String should match pattern"):
        parse_manifest(text.encode(), "here")


def test_brackets_in_brackets_without_end_are_no_manifest_and_no_json() -> None:
    with pytest.raises(CheckpointError, match=r"^here is not a checkpoint's manifest: maximum recursion depth"):
        parse_manifest(b"[" * 100_000, "here")
    with pytest.raises(CheckpointError, match=r"^here is not JSON: maximum recursion depth"):
        from_json("here", b"[" * 100_000)
