"""The interface of a store.

A store keeps bytes under keys (see `raydis.store.keys`). A tag identifies one version of the bytes under a key: while
`tag(key)` returns the same tag, `read(key)` returns the same bytes. Tags of different stores are not comparable.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from raydis.store.location import Location


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


def check_condition(if_absent: bool, if_match: str | None) -> None:
    """Raise ValueError if both conditions of a write are given."""
    if if_absent and if_match is not None:
        raise ValueError("give if_absent or if_match, not both")
