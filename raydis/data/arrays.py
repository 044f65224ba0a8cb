"""Read arrays from .npz, .npy and HDF5 files, without unpickling and without reading more than is needed.

The first bytes of a file determine which of the three formats it has. Its suffix does not matter.
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

BLOCK_BYTES = 1 << 24  # bytes read at a time
MAX_CHUNKS_BYTES = 1 << 28  # largest row of HDF5 chunks that is read at once; reading a part would decode them all
LOCAL_HEADER = struct.Struct("<26xHH")  # header of a zip member: lengths of its name and of its extra field
KINDS = {"integers": "iu", "numbers": "iuf", "text": "U"}  # name of a group of dtypes -> their numpy kinds


class Header(NamedTuple):
    """The description of an array in its file."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype


class ArrayFile(Protocol):
    """A file of arrays. It passes on the exceptions of its decoder; `reading` turns them into DataErrors."""

    path: Path

    def keys(self) -> list[str]:
        """Return the names of the arrays."""
        ...

    def header(self, key: str) -> Header:
        """Return type and shape of an array. Raise EOFError if the file has fewer bytes than the array needs."""
        ...

    def blocks(self, key: str, shape: tuple[int, ...], dtype: np.dtype) -> Iterator[np.ndarray]:
        """Yield consecutive rows of the array, about 16 MiB at a time."""
        ...

    def mapped(self, key: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray | None:
        """Return the array memory-mapped in the file; None if it cannot be. Writing to it never changes the file."""
        ...


@dataclass(frozen=True)
class StoredArray:
    """One array of a file, of which only the header has been read."""

    name: str  # of the data set, for errors
    file: ArrayFile
    key: str
    shape: tuple[int, ...]
    dtype: np.dtype

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield consecutive rows of the array, about 16 MiB at a time. Raise DataError if the file is damaged."""
        with reading(self.name, self.file.path):
            yield from self.file.blocks(self.key, self.shape, self.dtype)

    def mapped(self) -> np.ndarray | None:
        """Return the array memory-mapped in the file; None if it cannot be. Writing to it never changes the file."""
        with reading(self.name, self.file.path):
            return self.file.mapped(self.key, self.shape, self.dtype)

    def read(self) -> np.ndarray:
        """Return the whole array. Use it for small arrays only."""
        return np.concatenate([*self.blocks()]) if self.shape[0] else np.empty(self.shape, self.dtype)


def open_array(name: str, path: Path, keys: tuple[str, ...], dtype: str, shape: tuple[int | None, ...]) -> StoredArray:
    """Find one array of a file, and check its type and shape.

    Args:
        name: of the data set, for error messages.
        keys: possible names of the array in the different formats; the first one that exists is used. "" is the array
            of an .npy file.
        dtype: required type: the name of a dtype, or one of KINDS.
        shape: required shape, in which None allows any length. Additional leading axes, such as one for each factor,
            are merged into the first.

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
        """Raise EOFError if the end of the archive, which lists its members, is missing."""
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
    """A file of one unnamed array."""

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
    """An HDF5 file. The key of an array is the path of an HDF5 data set in the groups of the file."""

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
    """Return the shape with surplus leading axes merged into one: (2, 3, 8, 8) becomes (6, 8, 8) for three axes."""
    surplus = len(shape) - num_axes
    return (math.prod(shape[: surplus + 1]), *shape[surplus + 1 :]) if surplus > 0 and num_axes else shape


def _read_header(file: IO[bytes]) -> Header:
    """Read the header of an .npy file, and leave the file at the first byte of data."""
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
