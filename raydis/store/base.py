"""What every store can do, and the rule for keys.

A key is a relative path with `/` between its parts, such as `registry/quickstart/aliases/best.json`. A tag names one
version of one key's bytes: as long as `tag(key)` answers the same, `read(key)` does too. Tags of different stores do
not compare.
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

RESERVED_PREFIX = ".raydis-"  # parts that begin so are the stores' own files: locks and unfinished writes
MAX_KEY_BYTES = 1024  # S3's limit


@dataclass(frozen=True)
class Entry:
    """One line of a listing: a key, the tag of its present version, and how many bytes are stored there."""

    key: str
    tag: str
    size_bytes: int


class Store(Protocol):
    """Bytes under keys.

    Every method raises StoreError, in one line, for a key that is not allowed and for storage that fails: no
    permission, no credentials, no such bucket, unreachable, full. A write is seen whole or not at all.
    """

    @property
    def location(self) -> Location:
        """Where the keys lie; `open_store(location)` opens the same store."""
        ...

    @property
    def uri(self) -> str:
        """The location as it is printed; `open_store(uri)` opens the same store."""
        ...

    def read(self, key: str) -> bytes:
        """The bytes under the key. Raises StoreMissing."""
        ...

    def write(self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> str:
        """Replaces the bytes under the key and returns their tag.

        Args:
            if_absent: write only where nothing is stored; of several such writers exactly one succeeds.
            if_match: write only while the key's tag is this one; of several such writers exactly one succeeds.

        Raises:
            StoreConflict: the condition did not hold, and nothing was written.
        """
        ...

    def tag(self, key: str) -> str | None:
        """Tag of the key's present version; None where nothing is stored."""
        ...

    def exists(self, key: str) -> bool:
        """Whether anything is stored under the key."""
        ...

    def list(self, prefix: str = "") -> Iterator[str]:
        """All keys that begin with `prefix` as text, sorted; `a/b` finds `a/b/c` and `a/bc`, `a/b/` only the first."""
        ...

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """Keys as `list` finds them, each with the tag that `tag(key)` answers.

        A server's listing holds the tags, so that a folder of many objects costs no request an object. Keys that
        another program wrote may be ones that `check_key` refuses.
        """
        ...

    def delete(self, key: str) -> None:
        """Removes the key; nothing happens where it is absent."""
        ...

    def upload(self, path: Path, key: str) -> None:
        """Stores a file's bytes under the key without holding them in memory."""
        ...

    def download(self, key: str, path: Path, *, if_match: str | None = None) -> None:
        """Writes the key's bytes to a file without holding them in memory. Raises StoreMissing.

        The file appears under its name when it is complete; its folder is made where it is missing.

        Args:
            if_match: download only the version of this tag.

        Raises:
            StoreConflict: the key's bytes are no longer those of `if_match`, and no file was written.
        """
        ...


def check_key(key: str) -> str:
    """The key, if it is allowed.

    Raises:
        StoreError: empty, absolute, longer than MAX_KEY_BYTES, or with a part that is empty, `.`, `..`, reserved, or
            holds a backslash or a character that does not print: such a key could leave its store or mean two things.
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
    """Whether a text has neither control characters, nor line breaks, nor bytes that were no text."""
    return all(unicodedata.category(char) not in ("Cc", "Cs", "Zl", "Zp") for char in text)


def check_prefix(prefix: str) -> str:
    """A prefix of allowed keys: a key, a key with `/` at its end, or nothing. Raises StoreError."""
    if prefix:
        check_key(prefix.removesuffix("/"))
    return prefix


def check_condition(if_absent: bool, if_match: str | None) -> None:
    """Refuses two conditions at once, which no caller can mean."""
    if if_absent and if_match is not None:
        raise ValueError("give if_absent or if_match, not both")


@contextlib.contextmanager
def temporary_beside(path: Path) -> Generator[BinaryIO]:
    """A new file in the folder of `path`, which is made, for the caller to rename; removed where it was not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{RESERVED_PREFIX}{secrets.token_hex(8)}"
    try:
        with temporary.open("xb") as file:
            yield file
    finally:
        temporary.unlink(missing_ok=True)
