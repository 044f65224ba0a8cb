"""Read CelebA (Liu et al., ICCV 2015): photographs of faces with 40 binary attributes, on which TAD is measured.

The official files are read as they are: the aligned and cropped pictures (`img_align_celeba.zip`, unpacked) and the
list of attributes (`list_attr_celeba.txt`), both anywhere below one folder. We may not ship them. A picture of 178 x
218 pixels is cut to its central square, and the values -1 and 1 of an attribute become the levels 0 and 1. The
attributes are factors that form no grid: any combination may occur, and most never do.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import numpy as np

from raydis.data.dataset import Labels
from raydis.data.folder import FileKind, find_files, report_skipped, shown
from raydis.data.pictures import may_be_picture, picture_source
from raydis.data.source import Source, reading
from raydis.errors import DataError

ATTRIBUTES = "list_attr_celeba.txt"
ADVICE = f"set data.path to a folder with {ATTRIBUTES} and the unpacked img_align_celeba.zip"


def _belongs(name: str) -> bool:
    return PurePosixPath(name).name == ATTRIBUTES or may_be_picture(name)


CELEBA = FileKind(f"pictures and {ATTRIBUTES}", _belongs)


def read_celeba(folder: Path, image_size: int) -> Source:
    """Read the pictures that the list of attributes names, in its order.

    Raises:
        DataError: no list or several, a list of another form, or pictures that are missing or twice below the folder.
            Pictures that `decode_picture` refuses raise it when they are decoded.
    """
    files, skipped = find_files("celeba", folder, CELEBA)
    lists = [path for name, path in files.items() if PurePosixPath(name).name == ATTRIBUTES]
    if len(lists) != 1:
        raise DataError(f"celeba: {len(lists) or 'no'} files {ATTRIBUTES} below {shown(folder)}: {ADVICE}")
    keys, labels = read_attributes(lists[0])
    found: dict[str, Path] = {}
    for name, path in files.items():
        key = PurePosixPath(name).name
        if key in found:
            raise DataError(
                f"celeba: there are two pictures {shown(key)} below {shown(folder)}: keep those of img_align_celeba "
                "alone"
            )
        found[key] = path
    if missing := [key for key in keys if key not in found]:
        raise DataError(
            f"celeba: {len(missing)} of {len(keys)} pictures that {ATTRIBUTES} names are not below {shown(folder)}, "
            f"the first being {shown(missing[0])}: unpack img_align_celeba.zip again"
        )
    skipped["not listed"] += len(found) - 1 - len(keys)
    report_skipped("celeba", folder, CELEBA, len(keys), +skipped)
    kept = {key: found[key] for key in keys}
    return picture_source("celeba", folder, kept, image_size, labels=labels)


def read_attributes(path: Path) -> tuple[list[str], Labels]:
    """Read a list of attributes: the names of B pictures, and the levels 0 and 1 of their F attributes.

    The first line is the number of pictures, the second names the attributes. Each other line is the name of a picture
    and -1 or 1 for each attribute.

    Raises:
        DataError: the file cannot be read, or has another form.
    """
    with reading("celeba", path):
        text = path.read_text(encoding="utf-8-sig")
    lines = [line.split() for line in text.splitlines() if line.strip()]
    if len(lines) < 3 or lines[0] != [str(len(lines) - 2)]:
        found = f"begins with {' '.join(lines[0])[:40]!r}" if lines else "is empty"
        raise DataError(
            f"celeba: {shown(path)} {found} and has {max(len(lines) - 2, 0)} lines below the names of the attributes, "
            "but its first line must be their number: download it again"
        )
    names, rows = lines[1], lines[2:]
    for number, row in enumerate(rows, 3):
        if len(row) != len(names) + 1 or not set(row[1:]) <= {"-1", "1"}:
            raise DataError(
                f"celeba: line {number} of {shown(path)} is no name with {len(names)} values -1 or 1: download it again"
            )
    keys = [row[0] for row in rows]
    if len(set(keys)) < len(keys) or len(set(names)) < len(names):
        raise DataError(f"celeba: {shown(path)} names a picture or an attribute twice: download it again")
    return keys, Labels(tuple(names), (np.array([row[1:] for row in rows]) == "1").astype(np.int64))
