"""Checkpoint folders from a store. The manifest is written last: without it there is no checkpoint."""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import shutil
from pathlib import Path

from raydis.checkpoint.manifest import MANIFEST, Manifest, parse_manifest, verify
from raydis.errors import CheckpointError, StoreError
from raydis.store import Location, Store, StoreMissing, open_store

log = logging.getLogger(__name__)


def default_cache() -> Path:
    """Where fetched checkpoints are kept unless a caller says otherwise: below $RAYDIS_CACHE, else ~/.cache/raydis."""
    return Path(os.environ.get("RAYDIS_CACHE") or Path.home() / ".cache" / "raydis") / "checkpoints"


def fetch_checkpoint(uri: str | Path, cache_dir: Path) -> Path:
    """A verified local folder of the checkpoint at a local path or an `s3://bucket/folder` URI.

    A local checkpoint is used where it lies; one on S3 is downloaded to `cache_dir`, unless it is there already.

    Raises:
        CheckpointError: no checkpoint there, or it does not match its manifest.
        StoreError: the store refused, or no such place can exist.
    """
    location = Location.parse(uri)
    if location.folder is None:
        return download_checkpoint(open_store(location), "", cache_dir)
    verify(location.folder)
    return location.folder


def download_checkpoint(store: Store, prefix: str, cache_dir: Path) -> Path:
    """A verified copy of the checkpoint under `prefix` ("" for the store's root), in `cache_dir`.

    Its folder is named by the hash of its manifest, which holds the hashes of all other files: equal checkpoints
    share a folder. Processes may fetch the same one at once. A folder never changes and is never removed, because
    others may be loading from it, or map its weights into memory: where a copy was damaged since, the next fetch puts a
    new one beside it, under the same name with a number.

    Raises:
        CheckpointError: no checkpoint there, or what arrived does not match its manifest.
        StoreError: the store refused, or the cache's disk is full.
    """
    start = f"{prefix}/" if prefix else ""
    source = str(store.location / prefix if prefix else store.location)
    try:
        text = store.read(f"{start}{MANIFEST}")
    except StoreMissing as error:
        raise CheckpointError(f"no checkpoint in {source}: there is no {MANIFEST}") from error
    manifest = parse_manifest(text, f"{source}/{MANIFEST}")
    target = cache_dir / hashlib.sha256(text).hexdigest()[:32]
    number = 1
    while not _is_whole(target):
        if not target.exists():
            try:
                _download(store, start, manifest, text, target)
                return target
            except FileExistsError:  # another process was first: its copy serves as well, if it is whole
                continue
            except CheckpointError as error:
                raise CheckpointError(f"cannot fetch {source}: {error}") from error
            except OSError as error:
                raise StoreError(
                    f"cannot keep {source} in {cache_dir} ({error.strerror or error}): make room or point RAYDIS_CACHE "
                    "elsewhere"
                ) from error
        number += 1
        target = target.with_name(f"{target.name.partition('-')[0]}-{number}")
    return target


def _is_whole(copy: Path) -> bool:
    """Whether a copy is there and undamaged."""
    if not copy.exists():
        return False
    try:
        verify(copy)
    except CheckpointError as error:
        log.warning("%s. Another copy takes its place; remove this one when nothing uses it", error)
        return False
    return True


def _download(store: Store, start: str, manifest: Manifest, text: bytes, target: Path) -> None:
    """Put a verified copy under a name that is free. Raises FileExistsError where it no longer is."""
    arriving = target.with_name(f"{target.name}.tmp-{secrets.token_hex(4)}")
    try:
        for name in manifest.files:
            try:
                store.download(f"{start}{name}", arriving / name)
            except StoreMissing as error:
                raise CheckpointError(f"it lacks {name}, which its manifest lists") from error
        (arriving / MANIFEST).write_bytes(text)
        verify(arriving)
        try:
            arriving.rename(target)
        except OSError as error:
            if target.exists():
                raise FileExistsError(target) from error
            raise
    finally:
        shutil.rmtree(arriving, ignore_errors=True)
