"""Checkpoint folders from a store. The manifest is written last: without it there is no checkpoint."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from pathlib import Path

from raydis.errors import CheckpointError
from raydis.registry.manifest import MANIFEST, parse_manifest, verify
from raydis.store import Store, StoreMissing, open_store


def default_cache() -> Path:
    """Where fetched checkpoints are kept unless a caller says otherwise: below $RAYDIS_CACHE, else ~/.cache/raydis."""
    return Path(os.environ.get("RAYDIS_CACHE") or Path.home() / ".cache" / "raydis") / "checkpoints"


def fetch_checkpoint(uri: str | Path, cache_dir: Path) -> Path:
    """A verified local folder of the checkpoint at a path or an `s3://bucket/folder` URI.

    A local checkpoint is used where it lies; one on S3 is downloaded to `cache_dir`, unless it is there already.

    Raises:
        CheckpointError: no checkpoint there, or it does not match its manifest.
        StoreError: the store refused.
    """
    if str(uri).startswith("s3://"):
        return download_checkpoint(open_store(str(uri)), "", cache_dir)
    folder = Path(uri)
    verify(folder)
    return folder


def download_checkpoint(store: Store, prefix: str, cache_dir: Path) -> Path:
    """A verified copy of the checkpoint under `prefix` ("" for the store's root), in `cache_dir`.

    Its folder is named by the hash of its manifest, which holds the hashes of all other files: equal checkpoints
    share a folder, and a folder never changes. Processes may fetch the same one at once. A copy that was damaged since
    is fetched again.

    Raises:
        CheckpointError: no checkpoint there, or what arrived does not match its manifest.
        StoreError: the store refused, or the cache's disk is full.
    """
    start = f"{prefix}/" if prefix else ""
    source = f"{store.uri}/{prefix}".rstrip("/")
    try:
        text = store.read(f"{start}{MANIFEST}")
    except StoreMissing as error:
        raise CheckpointError(f"no checkpoint in {source}: there is no {MANIFEST}") from error
    manifest = parse_manifest(text, f"{source}/{MANIFEST}")
    target = cache_dir / hashlib.sha256(text).hexdigest()[:32]
    if target.exists():
        try:
            verify(target)
            return target
        except CheckpointError:
            shutil.rmtree(target, ignore_errors=True)
    arriving = cache_dir / f"{target.name}.tmp-{secrets.token_hex(4)}"
    try:
        for name in manifest.files:
            try:
                store.download(f"{start}{name}", arriving / name)
            except StoreMissing as error:
                raise CheckpointError(f"checkpoint {source} lacks {name}, which its manifest lists") from error
        (arriving / MANIFEST).write_bytes(text)
        verify(arriving)
        try:
            arriving.rename(target)
        except OSError:  # another process was first: its copy serves as well, if it is whole
            verify(target)
    except CheckpointError as error:
        raise CheckpointError(f"cannot fetch {source}: {error}") from error
    finally:
        shutil.rmtree(arriving, ignore_errors=True)
    return target
