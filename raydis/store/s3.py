"""S3 and what speaks its protocol (Ceph RGW, MinIO, R2, ...), through boto3.

Endpoint, region and credentials come from boto3's own chain: AWS_ENDPOINT_URL, AWS_DEFAULT_REGION, AWS_ACCESS_KEY_ID
and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, web identity, instance role. Conditional writes are single PUTs with
If-None-Match or If-Match; multipart uploads stay unconditional. Several servers answer 200 to such a PUT and ignore
the condition, so that two processes would both own what only one can. Before its first conditional write a process
therefore tries the conditions out, once for each bucket; who only reads never writes anything.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import secrets
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import boto3
import botocore.loaders
import botocore.session
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
)
from s3transfer.exceptions import RetriesExceededError

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

COPY_BYTES = 1 << 20

log = logging.getLogger(__name__)

NO_SUCH_TAG = "0" * 32  # no object has it
ADVICE = (
    "Use a server that implements conditional writes (AWS S3, Ceph RGW 18), a newer version of this one, or a folder "
    "that all machines share"
)

_proved: set[tuple[str, str]] = set()  # endpoint and bucket, of this process
_proving = threading.Lock()
_CREDENTIALS = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the machine's role"


class S3Store:
    """Keys below `s3://bucket/prefix`. A tag is the object's ETag. Threads may share one instance.

    A request whose answer got lost is sent again: a conditional write may then meet its own first try and raise
    StoreConflict although it was written. Callers that read again and decide anew, as they must, come out right.
    """

    def __init__(self, bucket: str, prefix: str = "", *, num_attempts: int = 5, timeout_s: float = 60.0) -> None:
        """
        Args:
            prefix: first part of all keys, without `/` at its end.
            num_attempts: tries a request, with exponential back-off, where the server throttles, fails or is silent.
            timeout_s: longest silence within one try.

        Raises:
            StoreError: bucket or prefix not allowed, or a profile or endpoint that boto3 cannot use.
        """
        self._location = Location(bucket, prefix)
        self._bucket = bucket
        self._num_attempts = num_attempts
        self._prefix = f"{prefix}/" if prefix else ""
        # boto3 adds CRC trailers by default, which servers other than AWS refuse or store as part of the bytes.
        other_server = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        checksums = "when_required" if other_server else "when_supported"
        try:
            session = botocore.session.get_session()
            session.register_component("data_loader", _service_descriptions())
            self._client: Any = boto3.Session(botocore_session=session).client(
                "s3",
                config=Config(
                    connect_timeout=min(10.0, timeout_s),
                    read_timeout=timeout_s,
                    retries={"total_max_attempts": num_attempts, "mode": "standard"},
                    request_checksum_calculation=checksums,
                    response_checksum_validation=checksums,
                    max_pool_connections=32,
                ),
            )
        except (BotoCoreError, ValueError) as error:
            raise StoreError(f"cannot set up S3 for s3://{bucket}: {_one_line(error)}") from error

    @property
    def location(self) -> Location:
        return self._location

    @property
    def uri(self) -> str:
        return str(self._location)

    def read(self, key: str) -> bytes:
        with self._errors("read", key):
            return self._client.get_object(**self._object(key))["Body"].read()

    def write(self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> str:
        check_condition(if_absent, if_match)
        if if_absent or if_match is not None:
            self._prove_conditions(key)
        condition = {"IfNoneMatch": "*"} if if_absent else {"IfMatch": if_match} if if_match is not None else {}
        try:
            with self._errors("write", key):
                return _tag(self._client.put_object(**self._object(key), Body=data, **condition))
        except StoreMissing as error:  # If-Match on a key that is gone
            raise StoreConflict(
                f"{key} in {self.uri} was not written: expected {if_match}, found nothing there. "
                "Read it again and decide anew"
            ) from error

    def tag(self, key: str) -> str | None:
        try:
            with self._errors("look up", key):
                return _tag(self._client.head_object(**self._object(key)))
        except StoreMissing:
            return None

    def exists(self, key: str) -> bool:
        return self.tag(key) is not None

    def list(self, prefix: str = "") -> Iterator[str]:
        return (found["Key"] for found in self._listed(check_prefix(prefix)))  # checked now, not at the first key

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        listed = self._listed(check_prefix(prefix))
        return (Entry(found["Key"], self._listed_tag(found), found["Size"]) for found in listed)

    def delete(self, key: str) -> None:
        with self._errors("delete", key):
            self._client.delete_object(**self._object(key))

    def upload(self, path: Path, key: str) -> None:
        try:
            with open(path, "rb") as file, self._errors("upload", key):
                self._client.upload_fileobj(file, **self._object(key))
        except OSError as error:
            raise StoreError(f"cannot upload {path} to {key} in {self.uri}: {error.strerror or error}") from error

    def download(self, key: str, path: Path, *, if_match: str | None = None) -> None:
        target = self._object(key)
        try:
            with temporary_beside(path) as file:
                with self._errors("download", key):
                    if if_match is None:
                        self._client.download_fileobj(**target, Fileobj=file)
                    else:
                        self._download_version(target, if_match, file)
                file.flush()
                os.replace(file.name, path)
        except OSError as error:
            raise StoreError(f"cannot download {key} in {self.uri} to {path}: {error.strerror or error}") from error

    def _download_version(self, target: dict[str, str], tag: str, file: BinaryIO) -> None:
        """Write one version of an object; after a broken connection go on where it stopped."""
        for attempt in range(1, self._num_attempts + 1):
            rest = {"Range": f"bytes={file.tell()}-"} if file.tell() else {}
            response = self._client.get_object(**target, IfMatch=tag, **rest)
            if _tag(response) != tag:  # a server that ignores If-Match
                raise StoreConflict(
                    f"{target['Key']} in s3://{self._bucket} was not downloaded: expected version {tag}, "
                    f"found {_tag(response)}. Look it up again"
                )
            if rest and response["ResponseMetadata"]["HTTPStatusCode"] != 206:  # a server that ignores Range
                file.seek(0)
                file.truncate()
            try:
                shutil.copyfileobj(response["Body"], file, COPY_BYTES)
            except (HTTPClientError, IncompleteReadError):
                if attempt == self._num_attempts:
                    raise
            else:
                return

    def _listed(self, prefix: str) -> Iterator[dict[str, Any]]:
        """What the server lists below a prefix of keys, with `Key` relative to the store."""
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=self._prefix + prefix
        )
        with self._errors("list", prefix or "keys"):
            for page in pages:
                for found in page.get("Contents", ()):
                    name = found["Key"].rpartition("/")[2]
                    if name and not name.startswith(RESERVED_PREFIX):  # nameless: a console's folder marker
                        yield {**found, "Key": found["Key"].removeprefix(self._prefix)}

    def _listed_tag(self, found: dict[str, Any]) -> str:
        """The tag in one line of a listing; asked for at a server that leaves it out."""
        if "ETag" in found:
            return _tag(found)
        with self._errors("look up", found["Key"]):
            return _tag(self._client.head_object(Bucket=self._bucket, Key=self._prefix + found["Key"]))

    def _object(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + check_key(key)}

    def _prove_conditions(self, key: str) -> None:
        """Try conditional writes out, once a process for each bucket, in the folder of the key that is to be written.

        Five small requests. The object that they write has a new name each time, so that processes do not meet. It is
        hidden from `list`, and deleted unless the credentials do not allow that, which is logged.

        Raises:
            StoreError: the server ignores conditions or does not implement them; the message says what to do.
        """
        server = (self._client.meta.endpoint_url, self._bucket)
        with _proving:
            if server in _proved:
                return
            folder = check_key(key).rpartition("/")[0]
            name = f"{folder}/{RESERVED_PREFIX}probe-{secrets.token_hex(8)}".lstrip("/")
            probe = {"Bucket": self._bucket, "Key": self._prefix + name}
            with self._errors("write", name):
                tag = _tag(self._client.put_object(**probe, Body=b""))
            try:
                if self._writes_if(probe, name, IfNoneMatch="*"):
                    raise self._no_conditions("it overwrote an object in spite of If-None-Match")
                if self._writes_if(probe, name, IfMatch=NO_SUCH_TAG):
                    raise self._no_conditions("it overwrote an object in spite of an If-Match that names another")
                if not self._writes_if(probe, name, IfMatch=tag):
                    raise self._no_conditions("it refused an If-Match that names the very object")
            finally:
                self._remove_probe(probe, name)
            _proved.add(server)

    def _writes_if(self, probe: dict[str, str], name: str, **condition: str) -> bool:
        """Whether the server writes the probe under a condition."""
        try:
            with self._errors("write", name):
                try:
                    self._client.put_object(**probe, Body=b"", **condition)
                except ClientError as error:
                    if _status(error) == 501:
                        header = "If-None-Match" if "IfNoneMatch" in condition else "If-Match"
                        raise self._no_conditions(f"it answered 501 to {header}") from error
                    raise
        except (StoreConflict, StoreMissing):
            return False
        return True

    def _no_conditions(self, found: str) -> StoreError:
        return StoreError(
            f"{self._client.meta.endpoint_url} does not implement conditional writes: {found}. Processes at the same "
            f"time would overwrite each other's work in {self.uri}. {ADVICE}"
        )

    def _remove_probe(self, probe: dict[str, str], name: str) -> None:
        try:
            with self._errors("delete", name):
                self._client.delete_object(**probe)
        except StoreError as error:
            log.warning("%s. It is empty and stays; raydis does not list it", error)

    @contextlib.contextmanager
    def _errors(self, verb: str, key: str) -> Iterator[None]:
        what = f"cannot {verb} {key} in {self.uri}"
        try:
            yield
        except ClientError as error:
            raise self._refused(what, key, error) from error
        except (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError) as error:
            raise StoreError(f"{what}: no S3 credentials ({_one_line(error)}): {_CREDENTIALS}") from error
        except (ConnectionError, HTTPClientError, RetriesExceededError) as error:
            raise StoreError(
                f"{what}: no answer from {self._client.meta.endpoint_url} ({_one_line(error)}): "
                "check AWS_ENDPOINT_URL and the network, then try again"
            ) from error
        except BotoCoreError as error:
            raise StoreError(f"{what}: {_one_line(error)}") from error

    def _refused(self, what: str, key: str, error: ClientError) -> StoreError:
        status = _status(error)
        code = error.response.get("Error", {}).get("Code", "")
        if code == "NoSuchBucket" or (code == "404" and self._bucket_is_missing()):
            return StoreError(
                f"{what}: bucket {self._bucket} does not exist at {self._client.meta.endpoint_url}: "
                "create it or correct the URI"
            )
        if status == 404:
            return StoreMissing(f"no key {key} in {self.uri}")
        if status == 412 or code == "ConditionalRequestConflict":
            return StoreConflict(f"{what}: somebody else wrote it first ({code}). Read it again and decide anew")
        if status in (401, 403) or code in ("ExpiredToken", "InvalidToken", "TokenRefreshRequired"):
            return StoreError(f"{what}: permission denied ({code}): {_CREDENTIALS}, and the bucket's policy")
        return StoreError(f"{what}: the server answered {status} {_one_line(error)}")

    def _bucket_is_missing(self) -> bool:
        """A HEAD answers 404 without a body for a missing key and for a missing bucket alike."""
        try:
            self._client.head_bucket(Bucket=self._bucket)
        except ClientError as error:
            return _status(error) == 404
        except BotoCoreError:  # the connection broke since: what is known is the 404 of the key
            return False
        return False


@functools.cache
def _service_descriptions() -> botocore.loaders.Loader:
    """boto3's own JSON files, parsed once a process: later clients open in 0.03 s instead of 0.13 s."""
    return botocore.loaders.create_loader()


def _tag(response: dict[str, Any]) -> str:
    # Without its quotes: Ceph RGW 18 refuses a quoted ETag in If-Match, and the others take either.
    return response["ETag"].strip('"')


def _status(error: ClientError) -> int | None:
    """HTTP status of a refusal."""
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
