"""The cache folder: it keeps decoded or rendered arrays, and downloads from S3, so that each is made only once.

Everything in it can be deleted at any time. A file gets its final name only when it is complete. If several processes
need the same file, one makes it and the others wait.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from raydis.data.dataset import digest
from raydis.data.folder import FileKind, counted, report_skipped, sort_out
from raydis.errors import DataError
from raydis.store import Location, StoreConflict, StoreError, StoreMissing, open_store, split_uri
from raydis.store.keys import check_key, temporary_beside

RAM_BYTES = 1 << 30  # larger arrays are memory-mapped, so that the processes of a machine share one copy
NUM_PIECES = 256  # pieces of the files that a fingerprint reads
PIECE_BYTES = 1 << 16
DOWNLOADS_AT_ONCE = 16
NUM_LOOKS = 5  # attempts to read a file or folder in S3 that is being replaced


def cache_folder(cache_dir: Path | None) -> Path:
    """Return the given folder, else $RAYDIS_CACHE, else ~/.cache/raydis. It is created at the first write."""
    return cache_dir or Path(os.environ.get("RAYDIS_CACHE") or Path.home() / ".cache" / "raydis")


def made_array(
    path: Path, shape: tuple[int, ...], fill: Callable[[np.ndarray], None], *, ram_bytes: int = RAM_BYTES
) -> np.ndarray:
    """Return a uint8 array filled by `fill`: in RAM if it takes at most `ram_bytes`, else from `cached_array`."""
    if math.prod(shape) > ram_bytes:
        return cached_array(path, shape, fill)
    array = np.empty(shape, np.uint8)
    fill(array)
    return array


def cached_array(
    path: Path, shape: tuple[int, ...], fill: Callable[[np.ndarray], None], *, dtype: type[np.generic] = np.uint8
) -> np.ndarray:
    """Return the memory-mapped array of an .npy file. If the file is missing, create it with `fill`.

    Writing to the array changes only the caller's view, never the file.

    Raises:
        DataError: no room or no permission, or a file that holds another array.
    """
    with _made_once(path) as missing:
        if missing:
            _write_array(path, shape, fill, np.dtype(dtype))
    try:
        array = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is damaged ({error}): delete it and start again") from error
    if array.shape != shape or array.dtype != dtype:
        expected = f"{np.dtype(dtype)} {shape}"
        raise DataError(f"{path} holds {array.dtype} {array.shape}, expected {expected}: delete it and start again")
    return array


def fetch(uri: str, cache_dir: Path, *, setting: str = "data.path") -> Path:
    """Return the local copy of a file in S3, and download it first if this version is not in the cache.

    The path of the copy contains the tag of its version, and only that version is downloaded. If the object is replaced
    in the meantime, its new version is looked up. Messages name the URI by its `setting`.

    Raises:
        DataError: nothing is stored there, or it is replaced NUM_LOOKS times in a row.
        StoreError: the store refused.
    """
    folder, key = split_uri(uri)
    store = open_store(folder)
    for _ in range(NUM_LOOKS):
        tag = store.tag(key)
        if tag is None:
            raise DataError(f"{setting}={uri}: nothing is stored there; correct it or upload the file")
        path = cache_dir / "downloads" / digest(uri=uri, tag=tag)[:16] / key
        with _made_once(path) as missing:
            if not missing:
                return path
            with contextlib.suppress(StoreConflict, StoreMissing):
                store.download(key, path, if_match=tag)
                return path
    raise DataError(f"{setting}={uri} was replaced {NUM_LOOKS} times while it was read: start again when it is stable")


def fetch_folder(uri: str, cache_dir: Path, kind: FileKind) -> Path:
    """Return the local copy of the files of a data set in an S3 folder, after downloading those that are missing.

    The rules for names in a local folder decide which objects belong to the data set; others are not downloaded. As in
    `fetch`, the tags in the listing identify the versions, and only these versions are downloaded.

    Raises:
        DataError: the folder has no such files, or it is changed NUM_LOOKS times in a row.
        StoreError: the store refused.
    """
    store = open_store(uri)
    with ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as pool:
        for _ in range(NUM_LOOKS):
            entries = {entry.key: entry for entry in store.entries()}
            kept, skipped = sort_out(entries, kind)
            keys = [key for key in kept if _is_allowed(key)]
            skipped["keys that are no paths"] += len(kept) - len(keys)
            skipped = +skipped  # without those that count 0
            if not keys:
                found = f"skipped: {counted(skipped)}" if skipped else "nothing is stored below it"
                raise DataError(f"data.path={uri} holds no {kind.what} ({found}): correct it or upload the files")
            tags = [entries[key].tag for key in keys]
            folder = cache_dir / "downloads" / digest(uri=uri, keys=keys, tags=tags)[:16]
            missing = [entries[key] for key in keys if not (folder / key).exists()]
            downloads = [pool.submit(store.download, it.key, folder / it.key, if_match=it.tag) for it in missing]
            with contextlib.suppress(StoreConflict, StoreMissing):
                for download in downloads:
                    download.result()
                report_skipped("data.path", uri, kind, len(keys), skipped)
                return folder
            for download in downloads:
                download.cancel()
    raise DataError(f"data.path={uri} was changed {NUM_LOOKS} times while it was read: start again when it is stable")


def is_stored(uri: str) -> bool:
    """Return whether this URI is a file in S3, and not a folder."""
    if uri.endswith("/") or not Location.parse(uri).path:  # a folder, or a whole bucket
        return False
    folder, key = split_uri(uri)
    return open_store(folder).exists(key)


def fingerprint_files(files: Mapping[str, Path]) -> str:
    """Return a digest of the names, sizes and sampled contents of files.

    The files are treated as one sequence of bytes, of which 256 evenly spread pieces of 64 KiB are hashed: all bytes of
    up to 16 MiB, and a sample of larger sets. A change that keeps all sizes and lies between the pieces is not noticed.

    Args:
        files: paths by the names that are hashed. The name of a single file should be empty, so that it may be renamed.
    """
    names = sorted(files)
    sizes = [files[name].stat().st_size for name in names]
    ends = np.cumsum(sizes)
    last = max(int(ends[-1]) - PIECE_BYTES, 0)
    state = hashlib.sha256(digest(names=names, sizes=sizes).encode())
    for start in sorted({last * piece // (NUM_PIECES - 1) for piece in range(NUM_PIECES)}):
        position, needed = start, PIECE_BYTES
        while needed and position < ends[-1]:  # a piece may span several small files
            owner = int(np.searchsorted(ends, position, side="right"))
            with files[names[owner]].open("rb") as file:
                file.seek(position - int(ends[owner]) + sizes[owner])
                piece = file.read(needed)
            state.update(piece)
            position, needed = position + len(piece), needed - len(piece)
    return state.hexdigest()


def _is_allowed(key: str) -> bool:
    try:
        check_key(key)
    except StoreError:  # written by another program, such as logs//cat.png
        return False
    return True


@contextlib.contextmanager
def _made_once(path: Path) -> Iterator[bool]:
    """Yield whether the caller must make the file. Other processes that ask wait until it is made."""
    if path.exists():
        yield False
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f"{path.name}.lock").open("ab")
    except OSError as error:
        found = error.strerror or error
        raise DataError(
            f"cannot write to the cache folder {path.parent} ({found}): point RAYDIS_CACHE elsewhere"
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield not path.exists()


def _write_array(path: Path, shape: tuple[int, ...], fill: Callable[[np.ndarray], None], dtype: np.dtype) -> None:
    size = math.prod(shape) * dtype.itemsize
    with temporary_beside(path) as file:
        np.lib.format.write_array_header_1_0(file, {"descr": dtype.str, "fortran_order": False, "shape": shape})
        offset = file.tell()
        file.flush()
        try:
            # Space is reserved now, because writing to a mapped page of a full disk would kill the process.
            os.posix_fallocate(file.fileno(), 0, offset + size)
        except OSError as error:
            raise DataError(
                f"cannot cache {path}: no room for {size / 1e9:.1f} GB ({error.strerror}): "
                "make room or point RAYDIS_CACHE elsewhere"
            ) from error
        array = np.memmap(file.name, dtype, "r+", offset, shape)
        fill(array)
        array.flush()
        os.replace(file.name, path)
