"""From the name of a registered model to the place of its checkpoint."""

from __future__ import annotations

from pathlib import Path

from raydis.config import RunConfig
from raydis.config.first_stage import LearnedStage
from raydis.registry.registry import Registry
from raydis.store import open_store


def names_version(checkpoint: str) -> bool:
    """Return whether a checkpoint is given as `name@version` or `name@alias`, and not by the place where it lies."""
    return "@" in checkpoint and "/" not in checkpoint and not Path(checkpoint).exists()


def locate(checkpoint: str, storage: str) -> str:
    """Return the folder or s3:// URI of a checkpoint, which may be the `name@version` or `name@alias` of a storage.

    Raises:
        RegistryError: no such model, version or alias.
    """
    if not names_version(checkpoint):
        return checkpoint
    registry = Registry(open_store(storage))
    return str(registry.store.location / registry.resolve(checkpoint).prefix)


def locate_first_stage(config: RunConfig, storage: str) -> RunConfig:
    """Return the run with its learned first stage's `name@alias`, if it is one, replaced by the version that it names.

    Raises:
        RegistryError: see `locate`.
    """
    stage = config.first_stage
    if not isinstance(stage, LearnedStage):
        return config
    stage = stage.model_copy(update={"checkpoint": locate(stage.checkpoint, storage)})
    return config.model_copy(update={"first_stage": stage})
