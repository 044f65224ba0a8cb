"""Which files of a folder belong to a data set: one rule for names in local folders and for keys in S3."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from raydis.errors import DataError

JUNK = ("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini")  # what systems put beside files, in lower case
MAX_NAMED = 20  # files that one message names

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FileKind:
    """What a data set reads from a folder.

    Args:
        what: plural noun for messages.
        fits: whether a name, relative to the folder and with `/` between its parts, is one of them.
    """

    what: str
    fits: Callable[[str], bool]


def find_files(name: str, folder: Path, kind: FileKind) -> tuple[dict[str, Path], Counter[str]]:
    """Find a data set's files below a folder.

    Args:
        name: of the data set, for errors.

    Returns:
        Their paths by relative name, in the order of these names; and how many others there are, by kind.

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
    """The names that fit, in their order, and how many do not, by kind. Hidden names never fit."""
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
    """Whether one part of a name is a system's own: .DS_Store, ._cat.jpg, .ipynb_checkpoints, __MACOSX, Thumbs.db."""
    return part.startswith(".") or part.lower() in JUNK


def report_skipped(name: str, where: str | Path, kind: FileKind, num_kept: int, skipped: Counter[str]) -> None:
    """Log in one line what was left out, if anything was."""
    if skipped:
        found = (name, kind.what, shown(where), num_kept, counted(skipped))
        log.warning("%s: number of %s in %s: %d; skipped: %s", *found)


def counted(skipped: Counter[str]) -> str:
    """`.txt (3), hidden (2)`, the largest count first."""
    ordered = sorted(skipped.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{shown(kind)} ({count})" for kind, count in ordered)


def shown(name: str | Path) -> str:
    """A file name as one printable line: line breaks and bytes that are no text are escaped."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(name))


def name_all(broken: Mapping[str, str]) -> str:
    """`a.png is empty; b.png is damaged`, up to MAX_NAMED files and the number of the others."""
    named = [f"{shown(name)} {problem}" for name, problem in list(broken.items())[:MAX_NAMED]]
    rest = len(broken) - len(named)
    return "; ".join(named) + (f"; and {rest} more" if rest else "")


def _walk(folder: Path) -> tuple[dict[str, Path], Counter[str]]:
    """All files below a folder that are not hidden, by relative name; and what else was found.

    Links to folders are followed. A folder is read once, under its own name if it lies in the tree and else under its
    first link's, so that neither a circle of links nor two links to one folder repeat a file. A link to a folder that
    holds the data set itself is such a circle.
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
    except OSError:  # a link in a circle
        return "broken links"
    return "broken links" if entry.is_symlink() else "special files"


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino
