"""A store in S3, or on any server with its protocol (Ceph RGW, MinIO, R2, ...), through boto3.

A conditional write is a single PUT with If-None-Match or If-Match. Before the first one, the store checks that the
server honours these conditions (see `raydis.store.s3_conditions`). Multipart uploads have no conditions.
"""

# boto3 has no types
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from botocore.exceptions import HTTPClientError, IncompleteReadError

from raydis.errors import StoreConflict, StoreError, StoreMissing
from raydis.store.base import (
    RESERVED_PREFIX,
    Entry,
    check_condition,
    check_key,
    check_prefix,
    temporary_beside,
)
from raydis.store.location import Location
from raydis.store.s3_client import Address, Answer, Condition, connect, tag_of
from raydis.store.s3_conditions import prove_conditions
from raydis.store.s3_errors import translated_errors

COPY_BYTES = 1 << 20


class S3Store:
    """The keys below `s3://bucket/prefix`. A tag is the object's ETag. Threads may share one instance.

    If the answer to a request is lost, the request is sent again. A conditional write can then fail because of its own
    first attempt, and raise StoreConflict although it was written. Callers must therefore read the key again after a
    StoreConflict.
    """

    def __init__(self, bucket: str, prefix: str = "", *, num_attempts: int = 5, timeout_s: float = 60.0) -> None:
        """
        Args:
            prefix: first part of all keys, without `/` at its end.
            num_attempts: attempts for each request, with exponential back-off, if the server throttles, fails or does
                not answer.
            timeout_s: longest time without data within one attempt.

        Raises:
            StoreError: the bucket or prefix is not allowed, or boto3 cannot use the profile or endpoint.
        """
        self._location = Location(bucket, prefix)
        self._bucket = bucket
        self._num_attempts = num_attempts
        self._prefix = f"{prefix}/" if prefix else ""
        self._client = connect(bucket, num_attempts=num_attempts, timeout_s=timeout_s)

    @property
    def location(self) -> Location:
        return self._location

    @property
    def uri(self) -> str:
        return str(self._location)

    def read(self, key: str) -> bytes:
        with self._translated_errors("read", key):
            return self._client.get_object(**self._object(key))["Body"].read()

    def write(self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> str:
        check_condition(if_absent, if_match)
        if if_absent or if_match is not None:
            prove_conditions(self._client, self._location, key)
        condition: Condition = {"IfNoneMatch": "*"} if if_absent else {}
        if if_match is not None:
            condition = {"IfMatch": if_match}
        try:
            with self._translated_errors("write", key):
                return tag_of(self._client.put_object(**self._object(key), Body=data, **condition))
        except StoreMissing as error:  # If-Match on a key that is gone
            raise StoreConflict(
                f"{key} in {self.uri} was not written: expected {if_match}, found nothing there. "
                "Read it again, then retry"
            ) from error

    def tag(self, key: str) -> str | None:
        try:
            with self._translated_errors("look up", key):
                return tag_of(self._client.head_object(**self._object(key)))
        except StoreMissing:
            return None

    def exists(self, key: str) -> bool:
        return self.tag(key) is not None

    def list(self, prefix: str = "") -> Iterator[str]:
        return (found["Key"] for found in self._listed(check_prefix(prefix)))  # checks the prefix at once

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        listed = self._listed(check_prefix(prefix))
        return (Entry(found["Key"], self._listed_tag(found), found["Size"]) for found in listed)

    def delete(self, key: str) -> None:
        with self._translated_errors("delete", key):
            self._client.delete_object(**self._object(key))

    def upload(self, path: Path, key: str) -> None:
        try:
            with open(path, "rb") as file, self._translated_errors("upload", key):
                self._client.upload_fileobj(file, **self._object(key))
        except OSError as error:
            raise StoreError(f"cannot upload {path} to {key} in {self.uri}: {error.strerror or error}") from error

    def download(self, key: str, path: Path, *, if_match: str | None = None) -> None:
        target = self._object(key)
        try:
            with temporary_beside(path) as file:
                with self._translated_errors("download", key):
                    if if_match is None:
                        self._client.download_fileobj(**target, Fileobj=file)
                    else:
                        self._download_version(target, if_match, file)
                file.flush()
                os.replace(file.name, path)
        except OSError as error:
            raise StoreError(f"cannot download {key} in {self.uri} to {path}: {error.strerror or error}") from error

    def _download_version(self, target: Address, tag: str, file: BinaryIO) -> None:
        """Write one version of an object to a file. After a broken connection, continue where it stopped."""
        for attempt in range(1, self._num_attempts + 1):
            wanted: Condition = {"IfMatch": tag}
            if file.tell():
                wanted["Range"] = f"bytes={file.tell()}-"
            response = self._client.get_object(**target, **wanted)
            if tag_of(response) != tag:  # a server that ignores If-Match
                raise StoreConflict(
                    f"{target['Key']} in s3://{self._bucket} was not downloaded: expected version {tag}, "
                    f"found {tag_of(response)}. Look it up again"
                )
            if (
                "Range" in wanted and response["ResponseMetadata"]["HTTPStatusCode"] != 206
            ):  # a server that ignores Range
                file.seek(0)
                file.truncate()
            try:
                shutil.copyfileobj(response["Body"], file, COPY_BYTES)
            except (HTTPClientError, IncompleteReadError):
                if attempt == self._num_attempts:
                    raise
            else:
                return

    def _listed(self, prefix: str) -> Iterator[Answer]:
        """Return the server's listing of the keys below a prefix, with `Key` relative to the store."""
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=self._prefix + prefix
        )
        with self._translated_errors("list", prefix or "keys"):
            for page in pages:
                for found in page.get("Contents", ()):
                    name = found["Key"].rpartition("/")[2]
                    if name and not name.startswith(RESERVED_PREFIX):  # an S3 console's folder marker has no name
                        yield {**found, "Key": found["Key"].removeprefix(self._prefix)}

    def _listed_tag(self, found: Answer) -> str:
        """Return the tag in one entry of a listing. Look it up if the server leaves it out of its listings."""
        if "ETag" in found:
            return tag_of(found)
        with self._translated_errors("look up", found["Key"]):
            return tag_of(self._client.head_object(Bucket=self._bucket, Key=self._prefix + found["Key"]))

    def _object(self, key: str) -> Address:
        return {"Bucket": self._bucket, "Key": self._prefix + check_key(key)}

    def _translated_errors(self, verb: str, key: str) -> contextlib.AbstractContextManager[None]:
        return translated_errors(self._client, self._location, verb, key)
