"""What an interrupted trial has left behind in its folder: checkpoints to go on from, and the time that it took."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raydis.checkpoint.manifest import MANIFEST
from raydis.store import Location, Store, StoreError, StoreMissing, open_store

RESULT_FILE = "result.json"  # Tune's log of a trial: a JSON object a line, one for each report
_CHECKPOINT = re.compile(r"/checkpoint_(\d{6})$")


@dataclass(frozen=True)
class Left:
    """What an interrupted trial has left behind.

    Attributes:
        checkpoints: folders or s3:// URIs of its checkpoints, the last one first. The last one may be incomplete.
        time_s: how long it ran, over all sessions of its sweep.
    """

    checkpoints: tuple[str, ...] = ()
    time_s: float = 0.0


def left_behind(store: Store, folder: str) -> Left:
    """Return what the trial with this folder, a key of the store, has left behind.

    Raises:
        StoreError: the store failed.
    """
    folders = (
        key.removesuffix(f"/{MANIFEST}") for key in store.list(f"{folder}/checkpoint_") if key.endswith(MANIFEST)
    )
    found = sorted((key for key in folders if _CHECKPOINT.search(key)), reverse=True)
    try:
        time_s = elapsed(store.read(f"{folder}/{RESULT_FILE}"))
    except StoreMissing:
        time_s = 0.0
    return Left(tuple(str(store.location / key) for key in found), time_s)


def elapsed(log: bytes) -> float:
    """Return how long a trial ran by Tune's log of it, whose clock begins anew in each session of its sweep."""
    total, last = 0.0, 0.0
    for line in log.splitlines():
        try:
            now = float(json.loads(line)["time_total_s"])
        except (ValueError, KeyError, TypeError):  # a line that was not written to its end
            continue
        total += last if now < last else 0.0
        last = now
    return total + last


def last_report(log: bytes) -> dict[str, Any]:
    """Return the last report in Tune's log of a trial; empty if there is none."""
    for line in reversed(log.splitlines()):
        try:
            return dict(json.loads(line))
        except (ValueError, TypeError):  # a line that was not written to its end
            continue
    return {}


def last_index(checkpoints: Sequence[str]) -> int:
    """Return the number in the name of the last checkpoint; -1 if there is none."""
    found = _CHECKPOINT.search(checkpoints[0]) if checkpoints else None
    return int(found[1]) if found else -1


def forget(checkpoints: Sequence[str]) -> None:
    """Delete checkpoints that a later one has replaced. If the storage fails, they stay."""
    for checkpoint in checkpoints:
        location = Location.parse(checkpoint)
        if location.folder is not None:
            shutil.rmtree(location.folder, ignore_errors=True)
            continue
        store = open_store(location)
        with contextlib.suppress(StoreError):
            for key in sorted(store.list(), key=lambda key: key != MANIFEST):  # the manifest first
                store.delete(key)
