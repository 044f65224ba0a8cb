"""Verify the files of a checkpoint folder against its manifest once, and detect later changes of a file.

JSON files are small: the bytes that were hashed stay in memory, and the files are not read again. Files of tensors stay
on disk, and their stamps (see `Stamp`) stay in memory. Each use of such a file compares its stamp, and hashes the file
again only if the stamp has changed. Hashing on each use would be slow, and a file that is only known by its name could
have been replaced. A stamp does not detect a write of equally many bytes to the same file within one tick of the file
system's clock (some milliseconds) after it was hashed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self

from raydis.checkpoint.manifest import MANIFEST, FileEntry, Manifest, parse_manifest
from raydis.errors import CheckpointError


class Stamp(NamedTuple):
    """Metadata of a file from the file system. It changes whenever the file is replaced or written to."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int  # ctime: unlike mtime, no program can set it

    @classmethod
    def of(cls, file: BinaryIO | Path) -> Self:
        """Return the stamp of an open file, or of the file at a path. Raises OSError."""
        found = os.stat(file) if isinstance(file, Path) else os.fstat(file.fileno())
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


class Hashed(NamedTuple):
    """Hash, size and stamp of a file at the time when it was hashed."""

    entry: FileEntry
    stamp: Stamp
    data: bytes | None  # the bytes that were hashed, if the caller asked to keep them


@dataclass(frozen=True)
class VerifiedFiles:
    """The files of a checkpoint folder that this process has hashed against their manifest.

    Attributes:
        folder: the folder of the files.
        manifest: the manifest that they match.
        texts: the bytes of the JSON files, by name.
        stamps: the stamps of the other files, by name, from the time when they were hashed.
    """

    folder: Path
    manifest: Manifest
    texts: Mapping[str, bytes]
    stamps: dict[str, Stamp]

    def moved(self, folder: Path) -> VerifiedFiles:
        """Return these files with the new path of their folder. Renaming a folder keeps the stamps of its files."""
        return replace(self, folder=folder)

    def path(self, name: str) -> Path:
        """Return the path of a file, after checking that its content is still the verified one.

        Raises:
            CheckpointError: the content has changed.
        """
        path = self.folder / name
        try:
            if Stamp.of(path) != self.stamps[name]:
                self.stamps[name] = _check(self.folder, name, self.manifest.files[name]).stamp
        except OSError as error:
            raise _unreadable(self.folder, name, error) from error
        return path

    def read(self, name: str) -> bytes:
        """Return the bytes of a file, after checking that they are the verified ones.

        A file of tensors is read as a whole and not mapped into memory, so that later writes to the file do not change
        the tensors.

        Raises:
            CheckpointError: the content has changed.
        """
        if name in self.texts:
            return self.texts[name]
        try:
            with (self.folder / name).open("rb") as file:
                data = file.read()
                unchanged = Stamp.of(file) == self.stamps[name]  # after the last byte was read
        except OSError as error:
            raise _unreadable(self.folder, name, error) from error
        if unchanged:
            return data
        hashed = _check(self.folder, name, self.manifest.files[name], keep=True)
        assert hashed.data is not None
        self.stamps[name] = hashed.stamp
        return hashed.data


def verify(folder: Path) -> VerifiedFiles:
    """Read a checkpoint's manifest, and compare the hash of every file with it.

    Files whose names begin with a dot are ignored.

    Raises:
        CheckpointError: there is no manifest, or a file is missing, unknown or damaged. The message names a damaged
            file with the expected and the found hash.
    """
    try:
        text = (folder / MANIFEST).read_bytes()
        found = {path.name for path in folder.iterdir() if not path.name.startswith(".")} - {MANIFEST}
    except FileNotFoundError as error:
        raise CheckpointError(f"no checkpoint in {folder}: there is no {MANIFEST}. {_advice(folder)}") from error
    except OSError as error:
        raise CheckpointError(
            f"no checkpoint in {folder}: {error.strerror or error}. Give the folder of a checkpoint, and make it "
            "readable"
        ) from error
    manifest = parse_manifest(text, str(folder / MANIFEST))
    if missing := sorted(set(manifest.files) - found):
        raise CheckpointError(
            f"checkpoint {folder} lacks {', '.join(missing)}, which its manifest lists: fetch it again"
        )
    if unknown := sorted(found - set(manifest.files)):
        raise CheckpointError(f"checkpoint {folder} holds {', '.join(unknown)}, unknown to its manifest: remove it")
    texts: dict[str, bytes] = {}
    stamps: dict[str, Stamp] = {}
    for name, expected in manifest.files.items():
        hashed = _check(folder, name, expected, keep=name.endswith(".json"))
        if hashed.data is None:
            stamps[name] = hashed.stamp
        else:
            texts[name] = hashed.data
    return VerifiedFiles(folder, manifest, texts, stamps)


def hash_file(path: Path, *, keep: bool = False) -> Hashed:
    """Hash a file.

    Args:
        keep: whether to return the bytes that were hashed as well.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        stamp = Stamp.of(file)  # before the first byte is read, so that a write during hashing changes the stamp
        if keep:
            data = file.read()
            return Hashed(entry_of(data), stamp, data)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Hashed(FileEntry(sha256=digest, bytes=file.tell()), stamp, None)


def entry_of(data: bytes) -> FileEntry:
    """Return the hash and the size of the bytes of a file."""
    return FileEntry(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))


def _check(folder: Path, name: str, expected: FileEntry, *, keep: bool = False) -> Hashed:
    """Hash a file of a folder. Raises CheckpointError if it does not match its entry in the manifest."""
    try:
        hashed = hash_file(folder / name, keep=keep)
    except OSError as error:
        raise _unreadable(folder, name, error) from error
    if hashed.entry != expected:
        raise CheckpointError(
            f"checkpoint {folder}: {name} is damaged: expected sha256 {expected.sha256} ({expected.bytes} bytes), "
            f"found {hashed.entry.sha256} ({hashed.entry.bytes} bytes). Fetch it again or use another checkpoint"
        )
    return hashed


def _unreadable(folder: Path, name: str, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {folder}: {name} cannot be read: {error.strerror or error}. "
        "Make it readable, fetch it again or use another checkpoint"
    )


def _advice(folder: Path) -> str:
    """Return what to open instead: the previous checkpoint, if an interrupted replacement has left it beside."""
    if kept := sorted(path.name for path in folder.parent.glob(f"{folder.name}.old-*")):
        return f"An interrupted replacement has left the previous checkpoint beside it: open {kept[0]}"
    return "Give the folder that a run printed as its checkpoint"
