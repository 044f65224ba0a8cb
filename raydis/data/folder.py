"""Decide which files of a folder belong to a data set. The rule is the same for local folders and for S3."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from raydis.errors import DataError

JUNK = ("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini")  # files that operating systems create, in lower case
MAX_NAMED = 20  # most files that a message names

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FileKind:
    """The kind of files that a data set reads from a folder.

    Args:
        what: plural noun for messages.
        fits: returns whether a name, relative to the folder and with `/` between its parts, is of this kind.
    """

    what: str
    fits: Callable[[str], bool]


def find_files(name: str, folder: Path, kind: FileKind) -> tuple[dict[str, Path], Counter[str]]:
    """Find a data set's files below a folder.

    Args:
        name: of the data set, for errors.

    Returns:
        Their paths by relative name, sorted by name; and the number of other files, by kind.

    Raises:
        DataError: a folder that cannot be read.
    """
    try:
        files, skipped = _walk(folder)
    except OSError as error:
        raise DataError(f"{name}: cannot read the folder {error.filename} ({error.strerror}): allow it") from error
    kept, others = sort_out(files, kind)
    return {key: files[key] for key in sorted(kept)}, skipped + others


def sort_out(names: Iterable[str], kind: FileKind) -> tuple[list[str], Counter[str]]:
    """Return the names that fit, in the given order, and the number of others, by kind. Hidden names never fit."""
    kept: list[str] = []
    skipped: Counter[str] = Counter()
    for name in names:
        if any(map(is_hidden, name.split("/"))):
            skipped["hidden"] += 1
        elif kind.fits(name):
            kept.append(name)
        else:
            skipped[PurePosixPath(name).suffix.lower() or "without suffix"] += 1
    return kept, skipped


def is_hidden(part: str) -> bool:
    """Return whether a part of a name is hidden or a system's: .DS_Store, .ipynb_checkpoints, __MACOSX, Thumbs.db."""
    return part.startswith(".") or part.lower() in JUNK


def report_skipped(name: str, where: str | Path, kind: FileKind, num_kept: int, skipped: Counter[str]) -> None:
    """Log in one line which files were skipped, if any."""
    if skipped:
        found = (name, kind.what, shown(where), num_kept, counted(skipped))
        log.warning("%s: number of %s in %s: %d; skipped: %s", *found)


def counted(skipped: Counter[str]) -> str:
    """Write the counts as `.txt (3), hidden (2)`, the largest first."""
    ordered = sorted(skipped.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{shown(kind)} ({count})" for kind, count in ordered)


def shown(name: str | Path) -> str:
    """Return a file name as one printable line, in which line breaks and bytes that are not text are escaped."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(name))


def name_all(broken: Mapping[str, str]) -> str:
    """List problems as `a.png is empty; b.png is damaged`, for up to MAX_NAMED files, and the number of the others."""
    named = [f"{shown(name)} {problem}" for name, problem in list(broken.items())[:MAX_NAMED]]
    rest = len(broken) - len(named)
    return "; ".join(named) + (f"; and {rest} more" if rest else "")


def _walk(folder: Path) -> tuple[dict[str, Path], Counter[str]]:
    """Return all files below a folder that are not hidden, by relative name, and the counts of skipped entries.

    Links to folders are followed. Every folder is read only once, so that neither circular links nor two links to one
    folder repeat a file: under its own name if it lies in the tree, else under the name of the first link. A link to a
    folder that contains the data set is circular, too.
    """
    files: dict[str, Path] = {}
    skipped: Counter[str] = Counter()
    seen = {_identity(parent) for parent in folder.resolve().parents}
    folders, links = [("", folder)], []
    while folders or links:
        prefix, path = folders.pop() if folders else links.pop(0)
        if _identity(path) in seen:
            skipped["links to folders that are read already"] += 1
            continue
        seen.add(_identity(path))
        for entry in _entries(path):
            name = prefix + entry.name
            match _kind_of(entry):
                case "hidden" | "broken links" | "special files" as kind:
                    skipped[kind] += 1
                case "folder":
                    (links if entry.is_symlink() else folders).append((f"{name}/", Path(entry.path)))
                case _:
                    files[name] = Path(entry.path)
    return files, skipped


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        yield from sorted(entries, key=lambda entry: entry.name)


def _kind_of(entry: os.DirEntry[str]) -> str:
    if is_hidden(entry.name):
        return "hidden"
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
    except OSError:  # a circular link
        return "broken links"
    return "broken links" if entry.is_symlink() else "special files"


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino
