"""Open a checkpoint folder: every byte is checked, and no code of it is executed.

A `Checkpoint` is opened and verified once in a process, and the object is then what is passed on, not its path. Torch
is imported by the two methods that return tensors: a registry lists, verifies and uploads without it.
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
    """A checkpoint whose files this process has checked against its manifest.

    Attributes:
        files: the verified files, and how to read or send them as they were verified.
        manifest: contents and origin.
        config: the run that trained it, in today's words whatever the version of the format.
        metrics: scores and losses.
    """

    files: VerifiedFiles
    manifest: Manifest
    config: RunConfig
    metrics: dict[str, Any]

    @property
    def folder(self) -> Path:
        """Where the files lie on this machine."""
        return self.files.folder

    def weights(self) -> dict[str, Tensor]:
        """Return the state dict of the method, on the CPU. Raises CheckpointError where the file changed since."""
        return self._tensors(WEIGHTS)

    def training(self) -> TrainingState:
        """Return the state of the training, as it was written; see `migrate_training`.

        Raises:
            CheckpointError: it was left out, as in a published version, or its file changed since.
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

        It is of today's format. Nothing is written: its weights are the file of this one, its JSON files are in memory.

        Raises:
            CheckpointError: a metric that JSON lacks, such as NaN.
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

    def _tensors(self, name: str) -> dict[str, Tensor]:
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            return load(self.files.read(name))
        except SafetensorError as error:
            raise CheckpointError(f"{self.folder / name} is not a safetensors file: {error}") from error


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open a checkpoint folder after checking the sha256 of every file.

    Raises:
        CheckpointError: no checkpoint, one of another format, a file that is missing, unknown or damaged, or a
            config.json that this raydis cannot run.
    """
    return checkpoint_of(verify(folder))


def checkpoint_of(files: VerifiedFiles) -> Checkpoint:
    """Read what was verified. Raises CheckpointError for a config.json that this raydis cannot run."""
    manifest, source = files.manifest, str(files.folder / CONFIG)
    tree = migrate_config(from_json(source, files.texts[CONFIG]), manifest.format_version)
    try:
        config = parse(RunConfig, tree, source=source)
    except ConfigError as error:
        written_by = manifest.packages.get("raydis", "another version")
        raise CheckpointError(f"{error} (the checkpoint was written by raydis {written_by})") from error
    metrics = migrate_metrics(from_json(str(files.folder / METRICS), files.texts[METRICS]), manifest.format_version)
    return Checkpoint(files=files, manifest=manifest, config=config, metrics=metrics)
