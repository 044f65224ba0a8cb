"""Find the folder or URI of the checkpoint of a registered model."""

from __future__ import annotations

from pathlib import Path

from raydis.config import RunConfig
from raydis.registry.registry import Registry
from raydis.store import open_store


def names_version(checkpoint: str) -> bool:
    """Return whether a checkpoint is given as `name@version` or `name@alias`, and not as a path or URI."""
    return "@" in checkpoint and "/" not in checkpoint and not Path(checkpoint).exists()


def locate(checkpoint: str, storage: str) -> str:
    """Return the folder or s3:// URI of a checkpoint.

    Args:
        checkpoint: a folder, a URI, or `name@version` or `name@alias` in the registry of `storage`.

    Raises:
        RegistryError: no such model, version or alias.
    """
    if not names_version(checkpoint):
        return checkpoint
    registry = Registry(open_store(storage))
    return str(registry.store.location / registry.resolve(checkpoint).prefix)


def locate_checkpoints(config: RunConfig, storage: str) -> RunConfig:
    """Replace each `name@version` or `name@alias` that the run takes weights from by the checkpoint's folder or URI.

    Raises:
        RegistryError: see `locate`.
    """
    return config.with_checkpoints({key: locate(found, storage) for key, found in config.checkpoints().items()})
