"""Arrays in .npz, .npy and HDF5 files, without unpickling and without reading more than is asked for.

Which of the three a file is, its first bytes tell; its suffix may be any.
"""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple, Protocol

import h5py
import numpy as np

from raydis.data.folder import MAX_NAMED, shown
from raydis.data.signature import HDF5, NPY, ZIP, signature
from raydis.data.source import reading
from raydis.errors import DataError

BLOCK_BYTES = 1 << 24  # read at a time
MAX_CHUNKS_BYTES = 1 << 28  # of one row of HDF5 chunks: read at once, because part of a chunk costs the whole
LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip member: lengths of its name and of its extra field
KINDS = {"integers": "iu", "numbers": "iuf", "text": "U"}  # of dtypes, by the word for any of them


class Header(NamedTuple):
    """What a file says of an array."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype


class ArrayFile(Protocol):
    """A file of arrays. What its decoder raises leaves it unchanged; `reading` turns it into DataErrors."""

    path: Path

    def keys(self) -> list[str]:
        """Names of the arrays."""
        ...

    def header(self, key: str) -> Header:
        """Type and shape of an array. Raises EOFError where the file holds fewer bytes than they take."""
        ...

    def blocks(self, key: str, shape: tuple[int, ...], dtype: np.dtype) -> Iterator[np.ndarray]:
        """Consecutive rows of the array, about 16 MiB at a time."""
        ...

    def mapped(self, key: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray | None:
        """The array memory-mapped in the file; None where that cannot be. Writing to it leaves the file alone."""
        ...


@dataclass(frozen=True)
class StoredArray:
    """One array of a file, described by its header alone."""

    name: str  # of the data set, for errors
    file: ArrayFile
    key: str
    shape: tuple[int, ...]
    dtype: np.dtype

    def blocks(self) -> Iterator[np.ndarray]:
        """Consecutive rows of the array, about 16 MiB at a time. Raises DataError where the file is damaged."""
        with reading(self.name, self.file.path):
            yield from self.file.blocks(self.key, self.shape, self.dtype)

    def mapped(self) -> np.ndarray | None:
        """The array memory-mapped in the file; None where that cannot be. Writing to it leaves the file alone."""
        with reading(self.name, self.file.path):
            return self.file.mapped(self.key, self.shape, self.dtype)

    def read(self) -> np.ndarray:
        """The whole array, for small ones."""
        return np.concatenate([*self.blocks()]) if self.shape[0] else np.empty(self.shape, self.dtype)


def open_array(name: str, path: Path, keys: tuple[str, ...], dtype: str, shape: tuple[int | None, ...]) -> StoredArray:
    """Describe one array of a file after checking it.

    Args:
        name: of the data set, for errors.
        keys: of the array, as the formats of the file name it; the first that is there counts. "" is the array of an
            .npy file.
        dtype: that it must have: a dtype's name, or one of KINDS.
        shape: that it must have; None allows any length. More axes in front, such as one a factor, become one.

    Raises:
        DataError: the file is missing, damaged or of another format, lacks the array, or holds another type or shape.
    """
    with reading(name, path):
        kind = signature(path)
        opened = {ZIP: NpzFile, NPY: NpyFile, HDF5: Hdf5File}.get(kind)
        if opened is None:
            raise DataError(f"{name}: {path} is {kind}; expected an .npz, .npy or HDF5 file with the array {keys[0]}")
        file = opened(path)
        key = _first(name, path, keys, file.keys())
        found = file.header(key)
    merged = _merged(found.shape, len(shape))
    fits = len(shape) == len(merged) and all(want in (None, has) for want, has in zip(shape, merged, strict=True))
    fits_type = dtype == found.dtype.name or found.dtype.kind in KINDS.get(dtype, "")
    if not fits or not fits_type or found.fortran_order:
        order = " in Fortran order" if found.fortran_order else ""
        lengths = ", ".join("any" if length is None else str(length) for length in shape)
        raise DataError(
            f"{name}: {key or 'images'} in {path} are {found.dtype} of shape {found.shape}{order}; "
            f"expected {dtype} of shape ({lengths}{',' * (len(shape) == 1)}): is it the official file?"
        )
    return StoredArray(name, file, key, merged, found.dtype)


class NpzFile:
    """A zip archive of .npy files."""

    def __init__(self, path: Path) -> None:
        """Raises EOFError for an archive without its end, where the list of its members is."""
        self.path = path
        if not zipfile.is_zipfile(path):
            raise EOFError("a zip archive without its end")

    def keys(self) -> list[str]:
        with zipfile.ZipFile(self.path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]

    def header(self, key: str) -> Header:
        with zipfile.ZipFile(self.path) as archive, archive.open(f"{key}.npy") as file:
            header = _read_header(file)
            _check_length(header, archive.getinfo(f"{key}.npy").file_size - file.tell())
        return header

    def blocks(self, key: str, shape: tuple[int, ...], dtype: np.dtype) -> Iterator[np.ndarray]:
        with zipfile.ZipFile(self.path) as archive, archive.open(f"{key}.npy") as file:
            _read_header(file)
            yield from _read_rows(file, shape, dtype)

    def mapped(self, key: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray | None:
        with zipfile.ZipFile(self.path) as archive:
            info = archive.getinfo(f"{key}.npy")
            if info.compress_type != zipfile.ZIP_STORED:
                return None
            with archive.open(info) as member:
                _read_header(member)
                header_bytes = member.tell()
        with self.path.open("rb") as file:
            file.seek(info.header_offset)
            name_bytes, extra_bytes = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
        offset = info.header_offset + LOCAL_HEADER.size + name_bytes + extra_bytes + header_bytes
        return np.memmap(self.path, dtype, "c", offset, shape)


class NpyFile:
    """A file of one array, which has no name."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def keys(self) -> list[str]:
        return [""]

    def header(self, key: str) -> Header:
        with self.path.open("rb") as file:
            header = _read_header(file)
            _check_length(header, self.path.stat().st_size - file.tell())
        return header

    def blocks(self, key: str, shape: tuple[int, ...], dtype: np.dtype) -> Iterator[np.ndarray]:
        with self.path.open("rb") as file:
            _read_header(file)
            yield from _read_rows(file, shape, dtype)

    def mapped(self, key: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray | None:
        with self.path.open("rb") as file:
            _read_header(file)
            return np.memmap(self.path, dtype, "c", file.tell(), shape)


class Hdf5File:
    """An HDF5 file; a key is the path of a data set in its groups."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def keys(self) -> list[str]:
        found: list[str] = []

        def visit(key: str, item: object) -> None:
            if isinstance(item, h5py.Dataset):
                found.append(key)

        with h5py.File(self.path) as file:
            file.visititems(visit)
        return found

    def header(self, key: str) -> Header:
        with h5py.File(self.path) as file:
            stored = _stored(file, key)
            return Header(stored.shape or (), False, stored.dtype)

    def blocks(self, key: str, shape: tuple[int, ...], dtype: np.dtype) -> Iterator[np.ndarray]:
        with h5py.File(self.path) as file:
            stored = _stored(file, key)
            row_bytes = max(math.prod(stored.shape[1:]) * dtype.itemsize, 1)
            chunk = stored.chunks[0] if stored.chunks else 1
            if chunk * row_bytes > MAX_CHUNKS_BYTES:
                chunk = 1
            rows = math.ceil(BLOCK_BYTES / row_bytes / chunk) * chunk
            for start in range(0, len(stored), rows):
                block = stored[start : start + rows]
                yield block.reshape(block.size // max(math.prod(shape[1:]), 1), *shape[1:])

    def mapped(self, key: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray | None:
        return None


def _first(name: str, path: Path, keys: tuple[str, ...], found: list[str]) -> str:
    for key in keys:
        if key in found:
            return key
    if found == [""]:
        holds = "one array without a name"
    else:
        holds = ", ".join(map(shown, found[:MAX_NAMED])) + (" ..." if len(found) > MAX_NAMED else "") or "nothing"
    raise DataError(f"{name}: {path} has no array {keys[0]}, found {holds}: is it the official file?")


def _merged(shape: tuple[int, ...], num_axes: int) -> tuple[int, ...]:
    """The shape with the axes that are too many made one with the first: (2, 3, 8, 8) is (6, 8, 8) of three axes."""
    surplus = len(shape) - num_axes
    return (math.prod(shape[: surplus + 1]), *shape[surplus + 1 :]) if surplus > 0 and num_axes else shape


def _read_header(file: IO[bytes]) -> Header:
    """Leave the file at the first byte of data."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return Header(*np.lib.format.read_array_header_1_0(file))
    return Header(*np.lib.format.read_array_header_2_0(file))


def _check_length(header: Header, data_bytes: int) -> None:
    expected = math.prod(header.shape) * header.dtype.itemsize
    if data_bytes < expected and not header.dtype.hasobject:
        raise EOFError(f"an array has {data_bytes} bytes of {expected}")


def _read_rows(file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype) -> Iterator[np.ndarray]:
    row_bytes = math.prod(shape[1:]) * dtype.itemsize
    rows = max(1, BLOCK_BYTES // max(row_bytes, 1))
    for start in range(0, shape[0], rows):
        count = min(rows, shape[0] - start)
        yield np.frombuffer(file.read(count * row_bytes), dtype).reshape(count, *shape[1:])


def _stored(file: h5py.File, key: str) -> h5py.Dataset:
    stored = file[key]
    assert isinstance(stored, h5py.Dataset)  # `keys` lists nothing else
    return stored
