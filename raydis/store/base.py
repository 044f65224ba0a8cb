"""The interface of a store, and the rule for its keys.

A key is a relative path with `/` between its parts, such as `registry/quickstart/aliases/best.json`. A tag identifies
one version of the bytes under a key: while `tag(key)` returns the same tag, `read(key)` returns the same bytes. Tags of
different stores are not comparable.
"""

from __future__ import annotations

import contextlib
import secrets
import unicodedata
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from raydis.errors import StoreError

if TYPE_CHECKING:
    from raydis.store.location import Location

RESERVED_PREFIX = ".raydis-"  # of names that a store uses itself, for locks and unfinished writes
MAX_KEY_BYTES = 1024  # S3's limit


@dataclass(frozen=True)
class Entry:
    """One entry of a listing: a key, the tag of its present version, and its number of bytes."""

    key: str
    tag: str
    size_bytes: int


class Store(Protocol):
    """A mapping from keys to bytes.

    Every method raises StoreError, in one line, for a key that is not allowed and for storage that fails: no
    permission, no credentials, no such bucket, unreachable, full. Writes are atomic: a reader never sees part of one.
    """

    @property
    def location(self) -> Location:
        """The folder or bucket of this store. `open_store(location)` opens the same store."""
        ...

    @property
    def uri(self) -> str:
        """The location as text. `open_store(uri)` opens the same store."""
        ...

    def read(self, key: str) -> bytes:
        """Return the bytes under the key. Raises StoreMissing if nothing is stored there."""
        ...

    def write(self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> str:
        """Replace the bytes under the key and return their tag.

        Args:
            if_absent: write only if nothing is stored there; of several such writers exactly one succeeds.
            if_match: write only if the key has this tag; of several such writers exactly one succeeds.

        Raises:
            StoreConflict: the condition did not hold, and nothing was written.
        """
        ...

    def tag(self, key: str) -> str | None:
        """Return the tag of the key's present version; None if nothing is stored there."""
        ...

    def exists(self, key: str) -> bool:
        """Return whether anything is stored under the key."""
        ...

    def list(self, prefix: str = "") -> Iterator[str]:
        """Return all keys that begin with the text `prefix`, sorted.

        The prefix `a/b` finds `a/b/c` and `a/bc`; `a/b/` finds only the first.
        """
        ...

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """Return the keys that `list` finds, with the tags that `tag(key)` returns and their sizes.

        The listing of a server contains the tags, so there is no request for each object. Other programs may have
        written keys that `check_key` does not allow.
        """
        ...

    def delete(self, key: str) -> None:
        """Remove the key; do nothing if it does not exist."""
        ...

    def upload(self, path: Path, key: str) -> None:
        """Store the bytes of a file under the key without holding them in memory."""
        ...

    def download(self, key: str, path: Path, *, if_match: str | None = None) -> None:
        """Write the bytes under the key to a file without holding them in memory.

        The file appears under its name when it is complete. Its folder is created if it is missing.

        Args:
            if_match: download only the version with this tag.

        Raises:
            StoreMissing: nothing is stored under the key.
            StoreConflict: the key no longer has the tag `if_match`, and no file was written.
        """
        ...


def check_key(key: str) -> str:
    """Return the key if it is allowed.

    Raises:
        StoreError: the key is empty, absolute or longer than MAX_KEY_BYTES, has a part that is empty, `.`, `..` or
            reserved, or contains a backslash or a character that is not printable. Such a key could point outside of
            its store, or be read in two ways.
    """
    parts = key.split("/")
    bad = [part for part in parts if part in ("", ".", "..") or part.startswith(RESERVED_PREFIX)]
    if bad or "\\" in key or not is_printable(key) or len(key.encode()) > MAX_KEY_BYTES:
        raise StoreError(
            f"key {key[:80]!r} is not allowed: use a relative path such as registry/quickstart/aliases/best.json, "
            f"without empty parts, '.', '..', backslashes or parts that begin with {RESERVED_PREFIX}"
        )
    return key


def is_printable(text: str) -> bool:
    """Return whether a text has no control characters, no line breaks, and no bytes that failed to decode as text."""
    return all(unicodedata.category(char) not in ("Cc", "Cs", "Zl", "Zp") for char in text)


def check_prefix(prefix: str) -> str:
    """Return a prefix if it is a key, a key with `/` at its end, or empty. Raises StoreError otherwise."""
    if prefix:
        check_key(prefix.removesuffix("/"))
    return prefix


def check_condition(if_absent: bool, if_match: str | None) -> None:
    """Raise ValueError if both conditions of a write are given."""
    if if_absent and if_match is not None:
        raise ValueError("give if_absent or if_match, not both")


@contextlib.contextmanager
def temporary_beside(path: Path) -> Generator[BinaryIO]:
    """Open a new temporary file in the folder of `path`, for the caller to fill and rename.

    The folder is created if it is missing. A file that the caller has not renamed is removed at the end of the block.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{RESERVED_PREFIX}{secrets.token_hex(8)}"
    try:
        with temporary.open("xb") as file:
            yield file
    finally:
        temporary.unlink(missing_ok=True)
