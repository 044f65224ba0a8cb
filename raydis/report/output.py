"""The file that a command was asked to write: refused before the work where it can be, and never half-written."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO

from raydis.errors import ConfigError, OutputError, os_reason
from raydis.store.base import temporary_beside

PICTURE_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}  # as the service takes them
PROBE_BYTES = 1 << 20  # about what a picture or a page takes


def check_output(path: Path, *, suffixes: Collection[str] = ()) -> None:
    """Find out before minutes of work whether a file can be written; leave nothing behind.

    Args:
        path: the file to be; its folder may be missing.
        suffixes: those allowed, in lower case; all, where it is empty.

    Raises:
        ConfigError: the path is a folder or a device, or has another suffix.
        OutputError: its folder cannot be written, or has no room for a picture.
    """
    if suffixes and path.suffix.lower() not in suffixes:
        raise ConfigError(f"-o {path}: found suffix {path.suffix or 'none'!r}, use one of {', '.join(suffixes)}")
    with _refusals(path):
        mode = _mode(path)
        if mode is not None and not stat.S_ISREG(mode):
            raise ConfigError(f"-o {path} is a {'folder' if stat.S_ISDIR(mode) else 'device'}: name a file")
        folder = next(above for above in path.absolute().parents if above.exists())
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(PROBE_BYTES))
            probe.flush()


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of `path` at the end of the block and vanishes where that fails.

    Raises:
        OutputError: no room, no permission, or no such place.
    """
    with _refusals(path), temporary_beside(path) as file:
        yield file
        file.flush()
        os.replace(file.name, path)


def _mode(path: Path) -> int | None:
    """The kind of what lies there; None where nothing does. `Path.exists` may call a name too long a missing file."""
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def _refusals(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write {path}: {os_reason(error)}") from error
