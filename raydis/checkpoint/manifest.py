"""The manifest of a checkpoint folder: size and sha256 of each file, and the run that the weights come from."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from raydis.errors import CheckpointError

# Version 2: the configuration has `method.kind` and `num_embeddings`, and no anchor mode `relative`. The state of a
# training has one optimiser for each move, and its unscored report has a dictionary of losses and one of health counts.
# The metrics have `diagnosis`, which has one form for all methods, instead of `anchoring`. Some code before version 2
# already wrote parts of this under number 1; `raydis.checkpoint.migrate` reads all of these forms.
FORMAT_VERSION: Literal[2] = 2
KNOWN_VERSIONS = (1, 2)
MANIFEST = "manifest.json"
CONFIG = "config.json"
WEIGHTS = "weights.safetensors"
METRICS = "metrics.json"
MODEL_FILES = (CONFIG, WEIGHTS, METRICS)
TRAINING_FILES = ("training.safetensors", "training.json")

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class FileEntry(BaseModel):
    """One file of a checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: Sha256
    bytes: int = Field(ge=0)


class Parent(BaseModel):
    """The trial that a checkpoint comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sweep: str
    trial: str


class Manifest(BaseModel):
    """Contents and origin of a checkpoint. It lists every file but itself, and allows only the format's file names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1, 2] = FORMAT_VERSION
    files: dict[str, FileEntry]
    images_seen: int = Field(ge=0)
    data_name: str
    data_fingerprint: str
    seed: int
    packages: dict[str, str] = Field(description="Versions of Python and of the packages that made the weights.")
    code_revision: str | None = Field(description="git commit of raydis, `-dirty` if changed; null outside a checkout.")
    created: AwareDatetime
    parent: Parent | None

    @model_validator(mode="after")
    def _names(self) -> Manifest:
        names, training = set(self.files), set(TRAINING_FILES)
        if names - training != set(MODEL_FILES) or names & training not in (set(), training):
            raise ValueError(
                f"files are {sorted(names)}, expected {', '.join(MODEL_FILES)} and both or none of "
                f"{', '.join(TRAINING_FILES)}"
            )
        return self

    @property
    def can_resume(self) -> bool:
        """Whether the checkpoint also holds the state of the training."""
        return set(TRAINING_FILES) <= set(self.files)

    def without_training(self) -> Manifest:
        """Return the manifest of the published checkpoint, which lacks the files that only resuming needs."""
        return self.model_copy(update={"files": {name: self.files[name] for name in MODEL_FILES}})

    def to_json(self) -> bytes:
        """Return the bytes of manifest.json. Their sha256 identifies the content of the checkpoint."""
        return (self.model_dump_json(indent=2) + "\n").encode()


def parse_manifest(text: bytes, source: str) -> Manifest:
    """Parse the bytes of a manifest.json.

    Args:
        source: where the bytes came from, for error messages.

    Raises:
        CheckpointError: the bytes are not a manifest, or have an unknown format version.
    """
    try:
        tree: Any = json.loads(text)
        version = tree["format_version"]
        if version not in KNOWN_VERSIONS:
            raise CheckpointError(
                f"{source} has format version {version}, this raydis reads {' and '.join(map(str, KNOWN_VERSIONS))}: "
                "open it with the raydis that wrote it (see its `packages`)"
            )
        return Manifest.model_validate(tree)
    except (ValueError, KeyError, TypeError, RecursionError) as error:  # ValidationError, JSONDecodeError: ValueErrors
        raise CheckpointError(f"{source} is not a checkpoint's manifest: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")
    return f"no {error}" if isinstance(error, KeyError) else str(error)
