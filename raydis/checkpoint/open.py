"""Open a checkpoint folder, verifying every byte and executing no code from it.

A process opens and verifies a checkpoint once, and then passes the `Checkpoint` object on instead of its path. Only the
two methods that return tensors import torch, so a registry lists, verifies and uploads checkpoints without it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydis.checkpoint.manifest import (
    CONFIG,
    FORMAT_VERSION,
    METRICS,
    TRAINING_FILES,
    WEIGHTS,
    Manifest,
)
from raydis.checkpoint.migrate import migrate_config, migrate_metrics
from raydis.checkpoint.state import TrainingState
from raydis.checkpoint.text import from_json, to_json
from raydis.checkpoint.verify import VerifiedFiles, entry_of, verify
from raydis.config import RunConfig
from raydis.config.files import parse
from raydis.config.identity import differences, listed
from raydis.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files this process has verified against its manifest.

    Attributes:
        files: the verified files; they notice if a file changes after its verification.
        manifest: contents and origin.
        config: the configuration of the run that trained it, converted to the current format.
        metrics: scores and losses.
    """

    files: VerifiedFiles
    manifest: Manifest
    config: RunConfig
    metrics: dict[str, Any]

    @property
    def folder(self) -> Path:
        """The folder of the files on this machine."""
        return self.files.folder

    def weights(self) -> dict[str, Tensor]:
        """Return the state dict of the method, on the CPU. Raises CheckpointError if the file no longer verifies."""
        return self._tensors(WEIGHTS)

    def training(self) -> TrainingState:
        """Return the state of the training, as it was written; see `migrate_training`.

        Raises:
            CheckpointError: the checkpoint does not hold it, as in a published version, or its file no longer verifies.
        """
        tensors, values = TRAINING_FILES
        if not self.manifest.can_resume:
            raise CheckpointError(
                f"checkpoint {self.folder} cannot be resumed: it has no {tensors}. "
                "Resume from a checkpoint of the run itself, not from a published version"
            )
        return TrainingState(self._tensors(tensors), from_json(str(self.folder / values), self.files.read(values)))

    def with_metrics(self, metrics: dict[str, Any]) -> Checkpoint:
        """Return a checkpoint of the same weights with other metrics and without the state of the training.

        It has the current format. Nothing is written to disk: the new checkpoint shares the file of the weights with
        this one, and keeps its JSON files in memory.

        Raises:
            CheckpointError: JSON cannot represent a metric, such as NaN.
        """
        texts = {
            CONFIG: to_json(CONFIG, self.config.model_dump(mode="json")),
            METRICS: to_json(METRICS, metrics),
        }
        published = self.manifest.without_training()
        entries = published.files | {name: entry_of(text) for name, text in texts.items()}
        manifest = published.model_copy(update={"files": entries, "format_version": FORMAT_VERSION})
        files = replace(self.files, manifest=manifest, texts=texts)
        return Checkpoint(files=files, manifest=manifest, config=self.config, metrics=metrics)

    def check_belongs(self, config: RunConfig, *, data_name: str, data_fingerprint: str) -> None:
        """Raise CheckpointError unless the run that wrote this checkpoint had the same configuration and images."""
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

    def _tensors(self, name: str) -> dict[str, Tensor]:
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            return load(self.files.read(name))
        except SafetensorError as error:
            raise CheckpointError(
                f"{self.folder / name} is not a safetensors file ({error}), although it matches the manifest: "
                "use another checkpoint"
            ) from error


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open a checkpoint folder after checking the sha256 of every file.

    Raises:
        CheckpointError: there is no checkpoint, its format is unknown, a file is missing, unknown or damaged, or this
            raydis cannot run its config.json.
    """
    return checkpoint_of(verify(folder))


def checkpoint_of(files: VerifiedFiles) -> Checkpoint:
    """Return the checkpoint in verified files. Raises CheckpointError if this raydis cannot run its config.json."""
    manifest, source = files.manifest, str(files.folder / CONFIG)
    tree = migrate_config(from_json(source, files.texts[CONFIG]), manifest.format_version)
    try:
        config = parse(RunConfig, tree, source=source)
    except ConfigError as error:
        written_by = manifest.packages.get("raydis", "another version")
        raise CheckpointError(f"{error} (the checkpoint was written by raydis {written_by})") from error
    metrics = migrate_metrics(from_json(str(files.folder / METRICS), files.texts[METRICS]), manifest.format_version)
    return Checkpoint(files=files, manifest=manifest, config=config, metrics=metrics)
