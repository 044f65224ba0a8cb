"""The rule for the keys of a store, and for the names that a store uses itself.

A key is a relative path with `/` between its parts, such as `registry/quickstart/aliases/best.json`.
"""

from __future__ import annotations

import contextlib
import secrets
import unicodedata
from collections.abc import Generator
from pathlib import Path
from typing import BinaryIO

from raydis.errors import StoreError

RESERVED_PREFIX = ".raydis-"  # of names that a store uses itself, for locks and unfinished writes
MAX_KEY_BYTES = 1024  # S3's limit


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
