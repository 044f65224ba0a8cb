"""Location of a store: parsing and printing of local paths, file URIs and s3:// URIs.

Libraries read the same text differently. boto3 and every S3 console read `s3://bucket/my runs#1` as a bucket and a raw
key. pyarrow, and therefore Ray, reads it as a percent-encoded URI, in which `#` ends the path and a space is an error.
raydis reads and prints raw keys; only `Location.pyarrow_uri` encodes them.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self
from urllib.parse import quote, unquote, urlsplit

from raydis.errors import StoreError
from raydis.store.base import check_key, is_printable

_BUCKET = re.compile(r"[A-Za-z0-9._-]{1,255}")
_SCHEME = re.compile(r"(s3|file):", re.IGNORECASE)
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


@dataclass(frozen=True)
class Location:
    """A local folder, or the keys below a prefix of an S3 bucket. `Location.parse(str(location)) == location`.

    Attributes:
        bucket: name of the S3 bucket; None for a local folder.
        path: the raw key prefix, without `/` at its ends and empty for the whole bucket; or an absolute local path.

    Raises:
        StoreError: the bucket name or the path is not allowed.
    """

    bucket: str | None
    path: str

    def __post_init__(self) -> None:
        if not is_printable(self.path):
            raise StoreError(f"{self.path!r} holds control characters or bytes that are not text: rename it")
        if self.bucket is None:
            return
        if not _BUCKET.fullmatch(self.bucket):
            # The text before an @ may be a secret key, because pyarrow accepts credentials there: do not print it.
            raise StoreError(
                f"{self.bucket.rpartition('@')[2]!r} is not a bucket name: use letters, digits, '.', '_' and '-'. "
                "Credentials come from the environment, never from the URI"
            )
        if self.path:
            check_key(self.path)

    @classmethod
    def parse(cls, text: str | Path, *, relative_to: Path | None = None) -> Self:
        """Parse `s3://bucket/prefix` (a raw prefix), `file:///folder` (percent-encoded) or a local path.

        This contacts no server and creates nothing.

        Args:
            relative_to: folder that a relative path starts from; None for the working directory.

        Raises:
            StoreError: another scheme, no bucket, a prefix that is not allowed, or an invalid file URI.
        """
        text = str(text)
        scheme, separator, rest = text.partition("://")
        if not text or (separator and scheme not in ("s3", "file")) or (not separator and _SCHEME.match(text)):
            raise StoreError(f"{text!r} names no store: use a folder, file:///folder or s3://bucket/prefix")
        if not separator:
            return cls.local(text, relative_to=relative_to)
        if scheme == "file":
            return cls.local(_path_of(text))
        bucket, _, prefix = rest.partition("/")
        if not bucket:
            raise StoreError(f"{text} names no bucket: write s3://bucket/prefix")
        return cls(bucket, prefix.rstrip("/"))

    @classmethod
    def local(cls, path: str | Path, *, relative_to: Path | None = None) -> Self:
        """Return the location of a local path, made absolute; `~` is the home folder.

        Raises:
            StoreError: the path is not allowed, or names the home folder of an unknown user.
        """
        try:
            expanded = Path(path).expanduser()
        except RuntimeError as error:
            raise StoreError(f"{path}: there is no such user, so no such home folder: write the path out") from error
        return cls(None, "/" + os.path.normpath(Path(relative_to or Path.cwd(), expanded)).lstrip("/"))

    @property
    def folder(self) -> Path | None:
        """The local folder; None on S3."""
        return Path(self.path) if self.bucket is None else None

    @property
    def pyarrow_uri(self) -> str:
        """The path or percent-encoded URI that pyarrow, Ray and fsspec read as this location."""
        return self.path if self.bucket is None else f"s3://{self.bucket}/{quote(self.path)}".rstrip("/")

    def at_pyarrow_path(self, path: str) -> Location:
        """Return the location of a path as pyarrow and Ray report it: `bucket/raw/key` on S3, without a scheme."""
        if self.bucket is None:
            return replace(self, path=path)
        bucket, _, key = path.partition("/")
        return replace(self, bucket=bucket, path=key)

    def __truediv__(self, key: str) -> Location:
        """Return the location of a key below this one. Raises StoreError if the key is not allowed."""
        if self.bucket is None:
            return replace(self, path=str(Path(self.path, check_key(key))))
        return replace(self, path=f"{self.path}/{check_key(key)}".lstrip("/"))

    def __str__(self) -> str:
        """Return the text that is printed and written to files; `parse` reads it back."""
        return self.path if self.bucket is None else f"s3://{self.bucket}/{self.path}".rstrip("/")


def split_uri(uri: str) -> tuple[Location, str]:
    """Split the URI or local path of a file into folder and key: `s3://bucket/a/b.h5` into (`s3://bucket/a`, `b.h5`).

    Raises:
        StoreError: there is no file name at the end, or see `Location.parse`.
    """
    location = Location.parse(uri) if uri and not uri.endswith("/") else None
    folder, _, key = location.path.rpartition("/") if location else ("", "", "")
    if location is None or not key:
        raise StoreError(f"{uri!r} names no file: write s3://bucket/folder/file or a local path to a file")
    return replace(location, path=folder or ("" if location.bucket else "/")), check_key(key)


def _path_of(uri: str) -> str:
    """Return the decoded path of a file URI."""
    parts = urlsplit(uri)
    if parts.netloc not in ("", "localhost") or not parts.path:
        raise StoreError(f"{uri} is not a local path: write file:///folder, with three slashes")
    if parts.query or parts.fragment or uri[-1] in "?#" or _BAD_ESCAPE.search(parts.path):
        raise StoreError(f"{uri} is not a file URI: write ? as %3F, # as %23 and % as %25, or give the plain path")
    try:
        return unquote(parts.path, errors="strict")
    except UnicodeDecodeError as error:
        raise StoreError(f"{uri} does not decode as UTF-8: give the plain path") from error
