"""The journal of a sweep: the log of its Optuna study, in a local file or below a key of a store.

The journal is the durable memory of a sweep. Only the driver that holds the sweep's lease writes it, and anyone may
read it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend

from raydis.store import Store
from raydis.sweep.files import STUDY_FILE
from raydis.sweep.folder import sweep_key

PARTS = f"{STUDY_FILE}.parts"


class FileJournal(JournalFileBackend):
    """Optuna's journal in one file, which stays readable after a write that a full disk or a kill cut short."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        super().__init__(str(path))

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        try:
            super().append_logs(logs)
        except OSError:
            with contextlib.suppress(OSError):
                cut_to_lines(self._path)
            raise


class StoreJournal(BaseJournalBackend):
    """Optuna's journal in a store, which has no files that grow: each `flush` writes one more part of it.

    Args:
        store, folder: the sweep's store, and the key of its folder there.
    """

    def __init__(self, store: Store, folder: str) -> None:
        self._store, self._folder = store, folder
        keys = sorted(store.list(f"{folder}/{PARTS}/"))
        self._logs = [json.loads(line) for key in keys for line in store.read(key).splitlines()]
        self._num_parts, self._num_written = len(keys), len(self._logs)

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Yield the entries from a number on."""
        yield from self._logs[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append entries. They are lasting after the next `flush`."""
        self._logs += [json.loads(json.dumps(log)) for log in logs]

    def flush(self) -> None:
        """Write the entries that were appended since the last call. Raises StoreError; the next call tries again."""
        text = _lines(self._logs[self._num_written :])
        if text:
            self._store.write(f"{self._folder}/{PARTS}/{self._num_parts:08d}", text)
            self._num_parts, self._num_written = self._num_parts + 1, len(self._logs)

    def write_whole(self) -> None:
        """Write the whole journal as one file, for programs such as `optuna-dashboard`. Raises StoreError."""
        self.flush()
        self._store.write(f"{self._folder}/{STUDY_FILE}", _lines(self._logs))


def study_storage(store: Store, folder: str, *, mend: bool = False) -> tuple[BaseStorage, StoreJournal | None]:
    """Return the storage of a sweep's study, and its journal if that must be flushed.

    Args:
        folder: key of the sweep's folder.
        mend: remove what a killed driver left of an unfinished write. Only the holder of the sweep's lease may.
    """
    place = store.location.folder
    if place is None:
        journal = StoreJournal(store, folder)
        return JournalStorage(journal), journal
    path = place / folder / STUDY_FILE
    if mend and path.exists():
        cut_to_lines(path)
        Path(f"{path}.lock").unlink(missing_ok=True)
    return JournalStorage(FileJournal(path)), None


def read_study(store: Store, name: str) -> optuna.Study | None:
    """Return the study of a sweep, to read it, also while the sweep runs; None if its folder has none."""
    folder = sweep_key(name)
    if not store.exists(f"{folder}/{STUDY_FILE}") and not any(True for _ in store.list(f"{folder}/{PARTS}/")):
        return None
    storage, _ = study_storage(store, folder)
    try:
        return optuna.load_study(study_name=name, storage=storage)
    except KeyError:  # its driver was killed before it began
        return None


def cut_to_lines(path: Path) -> None:
    """Remove the end of a file after its last line break."""
    with open(path, "r+b") as file:
        size = position = file.seek(0, os.SEEK_END)
        while position > 0:
            start = max(position - (1 << 16), 0)
            file.seek(start)
            at = file.read(position - start).rfind(b"\n")
            position = start if at < 0 else start + at + 1
            if at >= 0:
                break
        if position < size:
            file.truncate(position)


def _lines(logs: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(log, separators=(",", ":")).encode() + b"\n" for log in logs)
