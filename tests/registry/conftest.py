"""Checkpoint folders written by hand, byte by byte, so that the registry is tested without torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from raydis.registry.manifest import Manifest, file_entry

MakeCheckpoint = Callable[..., Path]


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> MakeCheckpoint:
    """`make_checkpoint(name, scores, weights=b"...")` writes a resumable checkpoint folder and returns it."""

    def make(name: str = "checkpoint", scores: dict[str, Any] | None = None, weights: bytes = b"weights") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "weights.safetensors").write_bytes(weights)
        (folder / "metrics.json").write_text(json.dumps({"loss": 0.1, "scores": scores}))
        (folder / "training.safetensors").write_bytes(b"moments")
        (folder / "training.json").write_text("{}")
        manifest = Manifest(
            files={path.name: file_entry(path) for path in folder.iterdir()},
            images_seen=10,
            data_name="shapes3d_procedural",
            data_fingerprint="abc",
            seed=0,
            packages={},
            code_revision=None,
            created=datetime(2025, 1, 1, tzinfo=UTC),
            parent=None,
        )
        (folder / "manifest.json").write_bytes(manifest.to_json())
        return folder

    return make
