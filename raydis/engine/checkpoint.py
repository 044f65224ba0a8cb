"""A checkpoint is a folder of JSON and safetensors; opening one checks every byte and runs no code.

config.json          the RunConfig
weights.safetensors  all that encode and edit need
metrics.json         scores and losses
manifest.json        sha256 of each file, and where the weights come from (raydis.registry.manifest)
training.safetensors, training.json  state of the training, while it can be resumed
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import raydis
from raydis.config import RunConfig
from raydis.config.files import parse
from raydis.config.identity import differences, listed
from raydis.data import FactorDataset
from raydis.errors import CheckpointError, ConfigError
from raydis.registry.manifest import (
    CONFIG,
    MANIFEST,
    METRICS,
    TRAINING_FILES,
    WEIGHTS,
    Manifest,
    Parent,
    file_entry,
    verify,
)
from raydis.registry.transfer import fetch_checkpoint

__all__ = [
    "Checkpoint",
    "TrainingState",
    "fetch_checkpoint",
    "migrate_config",
    "migrate_training",
    "open_checkpoint",
    "write_checkpoint",
]

PACKAGES = ("torch", "numpy", "scikit-learn", "safetensors", "pydantic", "ray", "optuna")


@dataclass(frozen=True)
class TrainingState:
    """What a training adds to the weights so that it can go on.

    Attributes:
        tensors: optimiser moments, raw weights, random states; any dtype that safetensors knows, bool and int too.
        values: counters and the like. Stored as JSON: keys become text and tuples lists.
    """

    tensors: dict[str, Tensor]
    values: dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder whose files were just checked against its manifest."""

    folder: Path
    manifest: Manifest
    config: RunConfig
    metrics: dict[str, Any]

    def weights(self) -> dict[str, Tensor]:
        """State dict of the method, on the CPU."""
        return _tensors(self.folder / WEIGHTS)

    def training(self) -> TrainingState:
        """State of the training. Raises CheckpointError where it was left out, as in a published version."""
        tensors, values = TRAINING_FILES
        if not self.manifest.can_resume:
            raise CheckpointError(
                f"checkpoint {self.folder} cannot be resumed: it has no {tensors}. "
                "Resume from a checkpoint of the run itself, not from a published version"
            )
        return TrainingState(_tensors(self.folder / tensors), _json(self.folder / values))

    def check_belongs(self, config: RunConfig, dataset: FactorDataset) -> None:
        """Raises CheckpointError where a run of `config` on `dataset` would not go on from here as it began."""
        if found := differences(self.config.model_dump(mode="json"), config):
            raise CheckpointError(
                f"checkpoint {self.folder} belongs to another configuration: {listed(found)}. "
                "Resume with its config.json, or start afresh under another name"
            )
        if self.manifest.data_fingerprint != dataset.fingerprint:
            raise CheckpointError(
                f"checkpoint {self.folder} was trained on other images than {dataset.name} holds now: "
                "restore the data set, or start afresh under another name"
            )


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
    """Writes a checkpoint folder, or replaces it, so that nothing half-written ever has its name.

    Args:
        metrics: JSON-able, all numbers finite; what could not be measured is null.
        training: None for a checkpoint that will not be resumed.
        parent: `sweep` and `trial` that the run belongs to.

    Raises:
        CheckpointError: a value that JSON lacks (NaN, an array, ...), named by its file, or a disk that refuses.
    """
    temporary = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # of a killed process that had this process's id
        temporary.mkdir(parents=True)
        _write_json(temporary / CONFIG, config.model_dump(mode="json"))
        _write_json(temporary / METRICS, metrics)
        _write_tensors(temporary / WEIGHTS, weights)
        if training is not None:
            _write_tensors(temporary / TRAINING_FILES[0], training.tensors)
            _write_json(temporary / TRAINING_FILES[1], training.values)
        manifest = Manifest(
            files={path.name: file_entry(path) for path in sorted(temporary.iterdir())},
            images_seen=images_seen,
            data_name=data_name,
            data_fingerprint=data_fingerprint,
            seed=config.seed,
            packages=package_versions(),
            code_revision=code_revision(Path(raydis.__file__).parent),
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


def open_checkpoint(folder: Path) -> Checkpoint:
    """Opens a checkpoint folder after checking the sha256 of every file.

    Raises:
        CheckpointError: no checkpoint, one of another format, a file that is missing, unknown or damaged, or a
            config.json that this raydis cannot run.
    """
    manifest = verify(folder)
    try:
        config = parse(RunConfig, migrate_config(_json(folder / CONFIG)), source=str(folder / CONFIG))
    except ConfigError as error:
        written_by = manifest.packages.get("raydis", "another version")
        raise CheckpointError(f"{error} (the checkpoint was written by raydis {written_by})") from error
    return Checkpoint(folder=folder, manifest=manifest, config=config, metrics=_json(folder / METRICS))


def migrate_config(config: dict[str, Any]) -> dict[str, Any]:
    """Replace in a tree that older code stored what `RunConfig` no longer knows; change the tree in place, return it.

    `method.family` is called `method.kind` now.

    `anchors.mode: relative` becomes `constant`. It shifted a token by shift_rate exp(-distance) of the way to its
    anchor, with a factor of median 0.995 on trained models: a typical shift is longer than before by 0.5 % of itself.
    """
    method = config.get("method")
    if not isinstance(method, dict):
        return config
    if "family" in method:
        method["kind"] = method.pop("family")
    anchors = method.get("anchors")
    if isinstance(anchors, dict) and anchors.get("mode") == "relative":
        anchors["mode"] = "constant"
    return config


def migrate_training(state: TrainingState, moves: Sequence[str]) -> TrainingState:
    """Return a state that older code stored as `Training` stores it now; one of this code is returned as it is.

    The moments of the single optimiser, `optimizer.3.exp_avg`, belong to the method's first move, as
    `optimizer.MOVE.3.exp_avg`. A report that waits for its scores had one loss and one count of failures, and before
    that there was none.

    Args:
        moves: names of the method's moves, in order.
    """
    tensors = {
        f"optimizer.{moves[0]}.{name.partition('.')[2]}" if re.match(r"optimizer\.\d+\.", name) else name: tensor
        for name, tensor in state.tensors.items()
    }
    values = {"unscored": None} | state.values
    unscored = values["unscored"]
    if unscored and "losses" not in unscored:
        unscored = dict(unscored)
        unscored["losses"] = {"loss": unscored.pop("loss")}
        unscored["health"] = {"num_unanchored_units": unscored.pop("num_unanchored_units")}
    return TrainingState(tensors, values | {"unscored": unscored})


@functools.cache
def code_revision(package: Path) -> str | None:
    """git commit of the checkout that tracks `package`, with `-dirty` where files were changed; None outside one.

    A package installed below somebody else's checkout (a virtual environment in it, say) is not that checkout's code.
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
    """Versions of Python, raydis and those of PACKAGES that are installed."""
    versions = {"python": platform.python_version(), "raydis": raydis.__version__}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _move_into_place(temporary: Path, folder: Path) -> None:
    """Renames `temporary` to `folder`. Where that exists it first steps aside, whole, and is then removed."""
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


def _write_json(path: Path, tree: Any) -> None:
    try:
        text = json.dumps(tree, indent=2, allow_nan=False)
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path.name} cannot hold these values: {error}. Use null for what could not be measured, and plain numbers"
        ) from error
    path.write_text(text + "\n", encoding="utf-8")


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not a safetensors file: {error}") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path} holds a {type(tree).__name__}, expected a mapping")
    return tree
