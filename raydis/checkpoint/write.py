"""Write a checkpoint folder, and record the versions of the code and the packages that made it."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]  (its PathLike is bare)
from torch import Tensor

from raydis.checkpoint.manifest import (
    CONFIG,
    MANIFEST,
    METRICS,
    TRAINING_FILES,
    WEIGHTS,
    Manifest,
    Parent,
)
from raydis.checkpoint.state import TrainingState
from raydis.checkpoint.text import to_json
from raydis.checkpoint.verify import hash_file
from raydis.config import RunConfig
from raydis.errors import CheckpointError
from raydis.version import __version__

PACKAGES = ("torch", "numpy", "scikit-learn", "safetensors", "pydantic", "ray", "optuna")


def write_checkpoint(
    folder: Path,
    *,
    config: RunConfig,
    weights: Mapping[str, Tensor],
    metrics: dict[str, Any],
    training: TrainingState | None,
    data_name: str,
    data_fingerprint: str,
    images_seen: int,
    parent: dict[str, str] | None = None,
) -> Manifest:
    """Write or replace a checkpoint folder. Its name never stands for a folder that is only partly written.

    Args:
        metrics: what JSON can hold, with finite numbers; None for what could not be measured.
        training: None for a checkpoint that will not be resumed.
        parent: `sweep` and `trial` that the run belongs to.

    Raises:
        CheckpointError: JSON cannot represent a value (NaN, an array, ...; the message names the file), or the disk
            cannot be written.
    """
    temporary = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # left by a killed process that had the same process id
        temporary.mkdir(parents=True)
        (temporary / CONFIG).write_bytes(to_json(CONFIG, config.model_dump(mode="json")))
        (temporary / METRICS).write_bytes(to_json(METRICS, metrics))
        _write_tensors(temporary / WEIGHTS, weights)
        if training is not None:
            _write_tensors(temporary / TRAINING_FILES[0], training.tensors)
            (temporary / TRAINING_FILES[1]).write_bytes(to_json(TRAINING_FILES[1], training.values))
        manifest = Manifest(
            files={path.name: hash_file(path).entry for path in sorted(temporary.iterdir())},
            images_seen=images_seen,
            data_name=data_name,
            data_fingerprint=data_fingerprint,
            seed=config.seed,
            packages=package_versions(),
            code_revision=code_revision(Path(__file__).parents[1]),
            created=datetime.now(UTC),
            parent=Parent.model_validate(parent) if parent else None,
        )
        (temporary / MANIFEST).write_bytes(manifest.to_json())
        _move_into_place(temporary, folder)
    except OSError as error:
        raise CheckpointError(f"cannot write checkpoint {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest


@functools.cache
def code_revision(package: Path) -> str | None:
    """Return the git commit of the checkout that tracks `package`, with `-dirty` if files were changed; else None.

    A package that is installed inside another project's checkout (such as in its virtual environment) is not tracked.
    """

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(package), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None


@functools.cache
def package_versions() -> dict[str, str]:
    """Return the versions of Python, raydis and those of PACKAGES that are installed."""
    versions = {"python": platform.python_version(), "raydis": __version__}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _move_into_place(temporary: Path, folder: Path) -> None:
    """Rename `temporary` to `folder`. If `folder` exists, it is renamed first, and removed at the end."""
    aside = folder.with_name(f"{folder.name}.old-{os.getpid()}")
    if folder.exists():
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
    temporary.rename(folder)
    shutil.rmtree(aside, ignore_errors=True)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    # Copies: safetensors refuses views and tensors that share memory, as tied weights and expanded buffers do.
    contiguous = torch.contiguous_format
    copies = {name: tensor.detach().to("cpu", copy=True, memory_format=contiguous) for name, tensor in tensors.items()}
    save_file(copies, path, metadata={"format": "pt"})
