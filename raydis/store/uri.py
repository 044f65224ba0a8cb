"""URIs of stores and of single files in them."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

from raydis.errors import StoreError
from raydis.store.base import Store, check_key
from raydis.store.local import LocalStore


def open_store(uri: str) -> Store:
    """The store at `s3://bucket/prefix`, `file:///folder` or a local path. Nothing is contacted or made yet.

    Raises:
        StoreError: another scheme, no bucket, a prefix that is not allowed, or a file URI of another host.
    """
    scheme, separator, rest = uri.partition("://")
    if not uri or (separator and scheme not in ("s3", "file")):
        raise StoreError(f"{uri!r} names no store: use a folder, file:///folder or s3://bucket/prefix")
    if scheme != "s3" or not separator:
        return LocalStore(_local_path(uri))
    bucket, _, prefix = rest.partition("/")
    if not bucket:
        raise StoreError(f"{uri} names no bucket: write s3://bucket/prefix")
    from raydis.store.s3 import S3Store  # boto3 takes half a second to import

    return S3Store(bucket, prefix.rstrip("/"))


def split_uri(uri: str) -> tuple[str, str]:
    """The store and the key of one file: `s3://bucket/a/b.h5` is (`s3://bucket/a`, `b.h5`); local paths likewise.

    Raises:
        StoreError: no file name at the end, or no bucket before it.
    """
    root, slash, key = _local_path(uri).rpartition("/")
    if not key or root in ("s3:", "s3:/"):
        raise StoreError(f"{uri!r} names no file: write s3://bucket/folder/file or a local path to a file")
    return (root or "/") if slash else ".", check_key(key)


def _local_path(uri: str) -> str:
    """A file URI as a path; anything else unchanged."""
    if not uri.startswith("file://"):
        return uri
    parts = urlsplit(uri)
    if parts.netloc not in ("", "localhost") or not parts.path:
        raise StoreError(f"{uri} is no local path: write file:///folder, with three slashes")
    return unquote(parts.path)
