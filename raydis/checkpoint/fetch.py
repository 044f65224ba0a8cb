"""Download checkpoint folders from a store into a local cache.

The manifest of a checkpoint is always written last. A folder without a manifest is therefore incomplete, and is treated
as if there were no checkpoint.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import secrets
import shutil
from pathlib import Path

from raydis.checkpoint.manifest import MANIFEST, Manifest, parse_manifest
from raydis.checkpoint.open import Checkpoint, checkpoint_of
from raydis.checkpoint.verify import VerifiedFiles, verify
from raydis.errors import CheckpointError, StoreError
from raydis.store import Location, Store, StoreMissing, open_store

log = logging.getLogger(__name__)


def default_cache() -> Path:
    """Return the folder of downloaded checkpoints: below $RAYDIS_CACHE if it is set, else below ~/.cache/raydis."""
    return Path(os.environ.get("RAYDIS_CACHE") or Path.home() / ".cache" / "raydis") / "checkpoints"


def fetch_checkpoint(uri: str | Path, cache_dir: Path) -> Checkpoint:
    """Open the checkpoint at a local path or an `s3://bucket/folder` URI, after verifying every file once.

    A local checkpoint is used in its own folder. One on S3 is downloaded to `cache_dir`, unless it is there already.

    Raises:
        CheckpointError: there is no checkpoint, it does not match its manifest, or this raydis cannot run it.
        StoreError: the store failed, or the path or URI is not allowed.
    """
    location = Location.parse(uri)
    if location.folder is None:
        return download_checkpoint(open_store(location), "", cache_dir)
    return checkpoint_of(verify(location.folder))


def download_checkpoint(store: Store, prefix: str, cache_dir: Path) -> Checkpoint:
    """Download the checkpoint under `prefix` ("" for the store's root) to `cache_dir`, verify it and open it.

    Its folder is named by the hash of its manifest, which holds the hashes of all other files, so equal checkpoints
    share a folder. Several processes may fetch the same checkpoint at once. A folder never changes and is never
    removed, because other processes may be loading from it, or map its weights into memory. If a copy has been damaged,
    the next fetch puts a new one beside it, under the same name with a number.

    Raises:
        CheckpointError: there is no checkpoint, the download does not match its manifest, or this raydis cannot run it.
        StoreError: the store failed, or the cache's disk is full.
    """
    return checkpoint_of(_download_files(store, prefix, cache_dir))


def _download_files(store: Store, prefix: str, cache_dir: Path) -> VerifiedFiles:
    start = f"{prefix}/" if prefix else ""
    source = str(store.location / prefix if prefix else store.location)
    try:
        text = store.read(f"{start}{MANIFEST}")
    except StoreMissing as error:
        raise CheckpointError(
            f"no checkpoint in {source}: there is no {MANIFEST}. Give the location that a run printed as its "
            "checkpoint, or another version of a model"
        ) from error
    manifest = parse_manifest(text, f"{source}/{MANIFEST}")
    name = hashlib.sha256(text).hexdigest()[:32]
    for number in itertools.count(1):
        target = cache_dir / (name if number == 1 else f"{name}-{number}")
        # Absent and damaged are told apart by one look: between two of them another process may put its copy there.
        if not target.exists():
            try:
                return _download(store, start, manifest, text, target)
            except FileExistsError:
                log.debug("another process was first to fetch %s: its copy is verified and used", target)
            except CheckpointError as error:
                raise CheckpointError(f"cannot fetch {source}: {error}") from error
            except OSError as error:
                raise StoreError(
                    f"cannot keep {source} in {cache_dir} ({error.strerror or error}): make room or point RAYDIS_CACHE "
                    "elsewhere"
                ) from error
        try:
            return verify(target)
        except CheckpointError as error:
            log.warning("%s. raydis fetches another copy; remove the damaged one when no process uses it", error)
    raise AssertionError("itertools.count has no end")


def _download(store: Store, start: str, manifest: Manifest, text: bytes, target: Path) -> VerifiedFiles:
    """Download and verify a copy, then rename it to `target`. Raises FileExistsError if `target` exists by then."""
    arriving = target.with_name(f"{target.name}.tmp-{secrets.token_hex(4)}")
    try:
        for name in manifest.files:
            try:
                store.download(f"{start}{name}", arriving / name)
            except StoreMissing as error:
                raise CheckpointError(f"it lacks {name}, which its manifest lists: use another checkpoint") from error
        (arriving / MANIFEST).write_bytes(text)
        files = verify(arriving)
        try:
            arriving.rename(target)
        except OSError as error:
            if target.exists():
                raise FileExistsError(target) from error
            raise
        return files.moved(target)
    finally:
        shutil.rmtree(arriving, ignore_errors=True)
