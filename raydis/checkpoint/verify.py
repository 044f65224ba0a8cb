"""Hash the files of a checkpoint folder against its manifest, once, and notice where one changes afterwards.

JSON files are small: the bytes that were hashed are kept, and nobody reads the file again. Files of tensors stay on the
disk. Their stamp (see `Stamp`) is kept beside the verification. Whoever uses such a file compares the stamp first, and
hashes the file again only where it changed. Hashing on each use would cost as much as it did before; trusting the name
of a verified file would serve whatever was written there in the meantime. A stamp does not notice who writes as many
bytes into the very same file within one tick of the file system's clock (some milliseconds) after it was hashed.
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
    """What a file system says of a file; it changes whenever the file is replaced or written to."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int  # unlike the time before it, no program can set this one

    @classmethod
    def of(cls, file: BinaryIO | Path) -> Self:
        """Return the stamp of an open file, or of the file at a path. Raises OSError."""
        found = os.stat(file) if isinstance(file, Path) else os.fstat(file.fileno())
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


class Hashed(NamedTuple):
    """A file as it was when it was hashed."""

    entry: FileEntry
    stamp: Stamp
    data: bytes | None  # the bytes themselves, where the caller wants to keep them


@dataclass(frozen=True)
class VerifiedFiles:
    """The files of a checkpoint folder that this process has hashed against their manifest.

    Attributes:
        folder: where they lie.
        manifest: what they were compared with.
        texts: the bytes of the JSON files, by name.
        stamps: of the other files, when they were hashed.
    """

    folder: Path
    manifest: Manifest
    texts: Mapping[str, bytes]
    stamps: dict[str, Stamp]

    def moved(self, folder: Path) -> VerifiedFiles:
        """Return the same files after their folder was renamed, which does not touch the files in it."""
        return replace(self, folder=folder)

    def path(self, name: str) -> Path:
        """Return the path of a file that is still as it was verified.

        Raises:
            CheckpointError: the file changed, and its sha256 with it.
        """
        path = self.folder / name
        try:
            if Stamp.of(path) != self.stamps[name]:
                self.stamps[name] = _check(self.folder, name, self.manifest.files[name]).stamp
        except OSError as error:
            raise _unreadable(self.folder, name, error) from error
        return path

    def read(self, name: str) -> bytes:
        """Return the bytes of a file, which are those that were verified.

        A file of tensors is read as a whole and not mapped into memory, so that what is written to it later does not
        reach the tensors.

        Raises:
            CheckpointError: the file changed, and its sha256 with it.
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
    """Read a checkpoint's manifest and hash every file against it.

    Files whose name begins with a dot are left to whoever put them there.

    Raises:
        CheckpointError: no manifest, a file that is missing, unknown, or not the one that was written: the message
            names it with the expected and the found hash.
    """
    try:
        text = (folder / MANIFEST).read_bytes()
        found = {path.name for path in folder.iterdir() if not path.name.startswith(".")} - {MANIFEST}
    except FileNotFoundError as error:
        raise CheckpointError(f"no checkpoint in {folder}: there is no {MANIFEST}{_present(folder)}") from error
    except OSError as error:
        raise CheckpointError(f"no checkpoint in {folder}: {error.strerror}") from error
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
    """Hash a file. All that this package hashes of a folder is hashed here.

    Args:
        keep: return the very bytes that were hashed.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        stamp = Stamp.of(file)  # before the first byte, so that a write while it is hashed is noticed later
        if keep:
            data = file.read()
            return Hashed(entry_of(data), stamp, data)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Hashed(FileEntry(sha256=digest, bytes=file.tell()), stamp, None)


def entry_of(data: bytes) -> FileEntry:
    """Return hash and size of the bytes of a file."""
    return FileEntry(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))


def _check(folder: Path, name: str, expected: FileEntry, *, keep: bool = False) -> Hashed:
    """Hash a file of a folder and compare it with its entry. Raises CheckpointError."""
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
    return CheckpointError(f"checkpoint {folder}: {name} cannot be read: {error.strerror or error}")


def _present(folder: Path) -> str:
    """What an interrupted replacement left beside the folder, as a hint."""
    kept = sorted(path.name for path in folder.parent.glob(f"{folder.name}.old-*"))
    return f"; {kept[0]} beside it is the one before, kept by a replacement that was interrupted" if kept else ""
