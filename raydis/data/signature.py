"""Recognise the type of a file by its first bytes, because a failed download often has the name of the wanted file."""

from __future__ import annotations

from pathlib import Path

HDF5 = "an HDF5 file"
ZIP = "a zip archive"
NPY = "a NumPy array (.npy)"
MATLAB5 = "a MATLAB 5 file"
MATLAB73 = "a MATLAB 7.3 file"
HTML = "an HTML page, as a server sends instead of a file that needs a login, a confirmation or another address"
LFS_POINTER = "a Git LFS pointer, not the file itself (`git lfs pull` fetches that)"
EMPTY = "empty"
UNKNOWN = "of an unknown format"

HEAD_BYTES = 4096
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
HDF5_OFFSETS = (0, 512, 1024, 2048)  # HDF5 files may begin with a block of other data
_FIRST_BYTES = (
    (b"PK\x03\x04", ZIP),
    (b"PK\x05\x06", ZIP),  # without members
    (b"\x93NUMPY", NPY),
    (b"MATLAB 5.0 MAT-file", MATLAB5),
    (b"MATLAB 7.3 MAT-file", MATLAB73),
    (b"version https://git-lfs", LFS_POINTER),
    (b"\x1f\x8b", "compressed by gzip: unpack it"),
    (b"BZh", "compressed by bzip2: unpack it"),
    (b"\xfd7zXZ\0", "compressed by xz: unpack it"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd: unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it"),
    (b"Rar!", "a RAR archive: unpack it"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"%PDF", "a PDF document"),
    *((bytes([0x80, protocol]), "a Python pickle, which raydis never loads") for protocol in range(2, 6)),
)


def signature(path: Path) -> str:
    """Describe a file: one of the constants above, or another phrase that completes the sentence "FILE is ...".

    Raises:
        OSError: the file is missing or cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if not head:
        return EMPTY
    for first, kind in _FIRST_BYTES:
        if head.startswith(first):
            return kind
    if any(head.startswith(HDF5_SIGNATURE, offset) for offset in HDF5_OFFSETS):
        return HDF5
    return "a tar archive: unpack it" if head[257:262] == b"ustar" else _text(head)


def _text(head: bytes) -> str:
    if b"\0" in head:
        return UNKNOWN
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1024].lower()
    if start.startswith((b"<!doctype html", b"<html")) or b"<html" in start:
        return HTML
    if start.startswith((b"<?xml", b"<error")):
        return "an XML document, as a storage server sends instead of a file that it refuses"
    printable = all(byte >= 32 or byte in b"\t\n\r\f" for byte in head)
    return "a text file" if printable and head.isascii() else UNKNOWN
