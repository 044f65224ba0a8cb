"""Write the output file of a command.

A path that cannot be written is reported before the work begins, if possible. The file is replaced as a whole, so it is
never incomplete.
"""

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

PICTURE_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}  # those that the service accepts
PROBE_BYTES = 1 << 20  # about the size of a picture or a page


def check_output(path: Path, *, suffixes: Collection[str] = ()) -> None:
    """Check that a file can be written, before a command works for minutes. This leaves no file behind.

    Args:
        path: the file; its folder may be missing.
        suffixes: the allowed suffixes, in lower case; empty to allow all.

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
    """Open a temporary file, which replaces `path` at the end of the block, or is removed if the block fails.

    Raises:
        OutputError: there is no room or no permission, or the path cannot exist.
    """
    with _refusals(path), temporary_beside(path) as file:
        yield file
        file.flush()
        os.replace(file.name, path)


def _mode(path: Path) -> int | None:
    """Return the mode of a file, as `os.stat` does; None if it does not exist.

    `Path.exists` is not used, because it may treat a name that is too long as a missing file.
    """
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
