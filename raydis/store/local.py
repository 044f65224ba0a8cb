"""A store in a local folder. The threads and processes of one machine may use it at the same time."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import BinaryIO

from raydis.errors import StoreConflict, StoreError, StoreMissing, os_reason
from raydis.store.base import (
    RESERVED_PREFIX,
    Entry,
    check_condition,
    check_key,
    check_prefix,
    temporary_beside,
)
from raydis.store.location import Location

LOCK_NAME = f"{RESERVED_PREFIX}lock"
COPY_BYTES = 1 << 20

_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


class LocalStore:
    """A folder with one file for each key, which the first write creates. A tag is the sha256 of the bytes.

    A write fills a temporary file beside its target and renames it. It holds the folder's lock while it checks its
    condition and renames. The first write also checks that locks work on this file system. Readers take no lock,
    because a rename is atomic.
    """

    def __init__(self, root: str | Path) -> None:
        self._location = Location.local(root)
        self._root = Path(self._location.path)
        self._locks_hold = False  # set once `_prove_lock` has found that locks work

    @property
    def location(self) -> Location:
        return self._location

    @property
    def uri(self) -> str:
        return str(self._location)

    def read(self, key: str) -> bytes:
        with self._errors(f"read {key}"), self._open(key) as file:
            return file.read()

    def write(self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> str:
        check_condition(if_absent, if_match)
        path = self._path(key)
        with self._errors(f"write {key}"), temporary_beside(path) as file:
            file.write(data)
            _flush(file)
            with self._lock():
                found = _tag(path) if if_absent or if_match is not None else None
                if (if_absent and found is not None) or (if_match is not None and found != if_match):
                    raise StoreConflict(
                        f"{key} in {self.uri} was not written: expected {if_match or 'nothing there'}, "
                        f"found {found or 'nothing there'}. Read it again, then retry"
                    )
                os.replace(file.name, path)
        return hashlib.sha256(data).hexdigest()

    def tag(self, key: str) -> str | None:
        path = self._path(key)
        with self._errors(f"read {key}"):
            return _tag(path)

    def exists(self, key: str) -> bool:
        return self._path(key).is_file()

    def list(self, prefix: str = "") -> Iterator[str]:
        folder = self._folder() / check_prefix(prefix).rpartition("/")[0]
        with self._errors(f"list {prefix or 'keys'}"):
            keys = [
                Path(where, name).relative_to(self._root).as_posix()
                for where, _, names in os.walk(folder, onerror=_raise_unless_absent)
                for name in names
                if not name.startswith(RESERVED_PREFIX)
            ]
        return iter(sorted(key for key in keys if key.startswith(prefix)))

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        return self._described(self.list(prefix))  # a call, not a generator, so that it checks the prefix at once

    def delete(self, key: str) -> None:
        path = self._path(key)
        with self._errors(f"delete {key}"):
            if path.is_file():
                with self._lock():
                    path.unlink(missing_ok=True)

    def upload(self, path: Path, key: str) -> None:
        target = self._path(key)
        with self._errors(f"upload {path} to {key}"), open(path, "rb") as source, temporary_beside(target) as file:
            shutil.copyfileobj(source, file, COPY_BYTES)
            _flush(file)
            with self._lock():
                os.replace(file.name, target)

    def download(self, key: str, path: Path, *, if_match: str | None = None) -> None:
        with self._errors(f"download {key} to {path}"), self._open(key) as source, temporary_beside(path) as file:
            # Hash the copied bytes, if a tag is given, because the key may be replaced during the copy.
            state = hashlib.sha256()
            while piece := source.read(COPY_BYTES):
                if if_match is not None:
                    state.update(piece)
                file.write(piece)
            if if_match is not None and (found := state.hexdigest()) != if_match:
                raise StoreConflict(
                    f"{key} in {self.uri} was not downloaded: expected version {if_match}, found {found}. "
                    "Look it up again"
                )
            file.flush()
            os.replace(file.name, path)

    def _described(self, keys: Iterator[str]) -> Iterator[Entry]:
        for key in keys:
            path = self._root / key
            with self._errors(f"read {key}"):
                tag = _tag(path)
                if tag is not None:  # the key has not been removed since it was listed
                    yield Entry(key, tag, path.stat().st_size)

    def _path(self, key: str) -> Path:
        return self._folder() / check_key(key)

    def _folder(self) -> Path:
        if self._root.is_file():
            raise StoreError(f"the store {self.uri} is a file, not a folder: name a folder, or s3://bucket/prefix")
        return self._root

    def _open(self, key: str) -> BinaryIO:
        try:
            return self._path(key).open("rb")
        except _ABSENT as error:
            raise StoreMissing(f"no key {key} in {self.uri}") from error

    @contextlib.contextmanager
    def _errors(self, action: str) -> Generator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(f"cannot {action} in the store {self.uri}: {os_reason(error)}") from error

    @contextlib.contextmanager
    def _lock(self) -> Generator[None]:
        # flock belongs to the open file: it excludes threads as well as processes, and a killed holder releases it.
        with open(self._root / LOCK_NAME, "ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                raise self._no_locks(error.strerror or str(error)) from error
            if not self._locks_hold:
                self._prove_lock()
            yield

    def _prove_lock(self) -> None:
        """Raise StoreError if the held lock can be taken again, as on file systems that ignore locks."""
        with open(self._root / LOCK_NAME, "ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._locks_hold = True
                return
        raise self._no_locks("two holders had the same lock at once")

    def _no_locks(self, found: str) -> StoreError:
        return StoreError(
            f"the file system of {self.uri} has no working locks ({found}), so that processes could overwrite each "
            "other's work. Mount it with locks (NFS 4; NFS 3 with lockd; Lustre with -o flock), use another folder, or "
            "s3://bucket/prefix"
        )


def _flush(file: BinaryIO) -> None:
    """Write a file to the disk, so that after a power cut the renamed file is not empty."""
    file.flush()
    os.fsync(file.fileno())


def _tag(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except _ABSENT:
        return None


def _raise_unless_absent(error: OSError) -> None:
    if not isinstance(error, _ABSENT):
        raise error
