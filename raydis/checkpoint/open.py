"""Open a checkpoint folder: every byte is checked, and no code of it is executed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from raydis.checkpoint.manifest import (
    CONFIG,
    METRICS,
    TRAINING_FILES,
    WEIGHTS,
    Manifest,
    verify,
)
from raydis.checkpoint.migrate import migrate_config
from raydis.checkpoint.state import TrainingState
from raydis.config import RunConfig
from raydis.config.files import parse
from raydis.config.identity import differences, listed
from raydis.errors import CheckpointError, ConfigError


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

    def check_belongs(self, config: RunConfig, *, data_name: str, data_fingerprint: str) -> None:
        """Raise CheckpointError where a run of `config` on these data would not go on from here as it began."""
        if found := differences(self.config.model_dump(mode="json"), config):
            raise CheckpointError(
                f"checkpoint {self.folder} belongs to another configuration: {listed(found)}. "
                "Resume with its config.json, or start afresh under another name"
            )
        if self.manifest.data_fingerprint != data_fingerprint:
            raise CheckpointError(
                f"checkpoint {self.folder} was trained on other images than {data_name} holds now: "
                "restore the data set, or start afresh under another name"
            )


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
