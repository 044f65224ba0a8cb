"""The client of boto3, and the part of it that raydis uses, with types: boto3 has none.

Endpoint, region and credentials come from boto3's own chain: AWS_ENDPOINT_URL, AWS_DEFAULT_REGION, AWS_ACCESS_KEY_ID
and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, web identity, instance role.
"""

# boto3 has no types
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import functools
import os
from collections.abc import Iterable
from typing import Any, BinaryIO, Protocol, TypedDict, Unpack, cast

import boto3
import botocore.loaders
import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError

from raydis.errors import StoreError, one_line

Answer = dict[str, Any]  # what the server answered, as boto3 parses it


class Address(TypedDict):
    """Bucket and key of one object, under the names that boto3 gives them."""

    Bucket: str
    Key: str


class Condition(TypedDict, total=False):
    """When an object is written or read, and which part of it."""

    IfNoneMatch: str
    IfMatch: str
    Range: str


class _Read(Address, Condition):
    pass


class _Write(Address, Condition):
    Body: bytes


class _Prefix(TypedDict):
    Bucket: str
    Prefix: str


class _Meta(Protocol):
    @property
    def endpoint_url(self) -> str: ...


class _Paginator(Protocol):
    def paginate(self, **prefix: Unpack[_Prefix]) -> Iterable[Answer]: ...


class S3Client(Protocol):
    """What raydis asks of boto3's client for S3. Its exceptions are those of `s3_errors.translated_errors`."""

    @property
    def meta(self) -> _Meta: ...
    def get_object(self, **what: Unpack[_Read]) -> Answer: ...
    def put_object(self, **what: Unpack[_Write]) -> Answer: ...
    def head_object(self, **what: Unpack[Address]) -> Answer: ...
    def delete_object(self, **what: Unpack[Address]) -> Answer: ...
    def head_bucket(self, *, Bucket: str) -> Answer: ...
    def get_paginator(self, operation_name: str) -> _Paginator: ...
    def upload_fileobj(self, Fileobj: BinaryIO, Bucket: str, Key: str) -> None: ...
    def download_fileobj(self, Bucket: str, Key: str, Fileobj: BinaryIO) -> None: ...


def connect(bucket: str, *, num_attempts: int, timeout_s: float) -> S3Client:
    """Return a client, which contacts nothing yet.

    Raises:
        StoreError: a profile or endpoint that boto3 cannot use; the message names the bucket.
    """
    # boto3 adds CRC trailers by default, which servers other than AWS refuse or store as part of the bytes.
    other_server = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    checksums = "when_required" if other_server else "when_supported"
    try:
        session = botocore.session.get_session()
        session.register_component("data_loader", _service_descriptions())
        client: Any = boto3.Session(botocore_session=session).client(
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
        raise StoreError(f"cannot set up S3 for s3://{bucket}: {one_line(str(error), limit=None)}") from error
    return cast(S3Client, client)


@functools.cache
def _service_descriptions() -> botocore.loaders.Loader:
    """boto3's own JSON files, parsed once a process: later clients open in 0.03 s instead of 0.13 s."""
    return botocore.loaders.create_loader()


def tag_of(answer: Answer) -> str:
    """Return the ETag in an answer or in a line of a listing."""
    # Without its quotes: Ceph RGW 18 refuses a quoted ETag in If-Match, and the others take either.
    return answer["ETag"].strip('"')
