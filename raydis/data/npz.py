"""Arrays in .npz archives, without unpickling and without reading more than is asked for."""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from raydis.data.source import reading
from raydis.errors import DataError

BLOCK_BYTES = 1 << 24  # decompressed at a time
LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip member: lengths of its name and of its extra field


@dataclass(frozen=True)
class Member:
    """One array of an archive, described by its header alone."""

    name: str  # of the data set, for errors
    path: Path
    key: str
    shape: tuple[int, ...]
    dtype: np.dtype

    def blocks(self) -> Iterator[np.ndarray]:
        """Consecutive rows of the array, about 16 MiB at a time. Raises DataError where the file is damaged."""
        row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        rows = max(1, BLOCK_BYTES // max(row_bytes, 1))
        with (
            reading(self.name, self.path),
            zipfile.ZipFile(self.path) as archive,
            archive.open(f"{self.key}.npy") as file,
        ):
            _read_header(file)
            for start in range(0, self.shape[0], rows):
                count = min(rows, self.shape[0] - start)
                yield np.frombuffer(file.read(count * row_bytes), self.dtype).reshape(count, *self.shape[1:])

    def mapped(self) -> np.ndarray | None:
        """The array memory-mapped in the archive; None where it is compressed. Writing to it leaves the file alone."""
        with reading(self.name, self.path), zipfile.ZipFile(self.path) as archive:
            info = archive.getinfo(f"{self.key}.npy")
            if info.compress_type != zipfile.ZIP_STORED:
                return None
            with archive.open(info) as member:
                _read_header(member)
                header_bytes = member.tell()
            with self.path.open("rb") as file:
                file.seek(info.header_offset)
                name_bytes, extra_bytes = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
            offset = info.header_offset + LOCAL_HEADER.size + name_bytes + extra_bytes + header_bytes
            return np.memmap(self.path, self.dtype, "c", offset, self.shape)

    def read(self) -> np.ndarray:
        """The whole array, for small ones."""
        return np.concatenate([*self.blocks()]) if self.shape[0] else np.empty(self.shape, self.dtype)


def open_member(name: str, path: Path, key: str, dtype: str, shape: tuple[int | None, ...]) -> Member:
    """Describes one array of an archive after checking it.

    Args:
        name: of the data set, for errors.
        key: of the array in the archive.
        dtype: kind that it must have: a dtype's name, or the letter of a dtype's kind.
        shape: that it must have; None allows any length.

    Raises:
        DataError: the file is missing or damaged, lacks the key, or holds another type or shape there.
    """
    with reading(name, path), zipfile.ZipFile(path) as archive:
        keys = [member.removesuffix(".npy") for member in archive.namelist()]
        if key not in keys:
            raise DataError(
                f"{name}: {path} has no key {key}, found {', '.join(keys) or 'none'}: is it the official file?"
            )
        with archive.open(f"{key}.npy") as file:
            found_shape, fortran_order, found_dtype = _read_header(file)
            data_bytes = archive.getinfo(f"{key}.npy").file_size - file.tell()
    fits = len(shape) == len(found_shape) and all(
        want in (None, has) for want, has in zip(shape, found_shape, strict=True)
    )
    if not fits or fortran_order or dtype not in (found_dtype.name, found_dtype.kind):
        wanted = "x".join("any" if length is None else str(length) for length in shape)
        order = " in Fortran order" if fortran_order else ""
        raise DataError(
            f"{name}: {key} in {path} is {found_dtype} {found_shape}{order}, expected {dtype} {wanted}: "
            "is it the official file?"
        )
    expected_bytes = math.prod(found_shape) * found_dtype.itemsize
    if data_bytes != expected_bytes:
        raise DataError(f"{name}: {key} in {path} has {data_bytes} bytes of {expected_bytes}: download it again")
    return Member(name, path, key, found_shape, found_dtype)


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, Fortran order and type; leaves the file at the first byte of data."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    return np.lib.format.read_array_header_2_0(file)
