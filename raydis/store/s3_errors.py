"""Translate boto3's exceptions to StoreErrors, which say what failed, what was found and what to do."""

# boto3 has no types
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import cast

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    CredentialRetrievalError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
)
from s3transfer.exceptions import RetriesExceededError

from raydis.errors import StoreConflict, StoreError, StoreMissing, one_line
from raydis.store.location import Location
from raydis.store.s3_client import Answer, S3Client

CREDENTIALS = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the machine's role"


@contextlib.contextmanager
def translated_errors(client: S3Client, location: Location, verb: str, key: str) -> Generator[None]:
    """Translate boto3's exceptions in a `with` block to StoreErrors, which name the operation and the key.

    Raises:
        StoreMissing: nothing is stored under the key.
        StoreConflict: a condition of the request did not hold.
        StoreError: any other failure of the server or the connection.
    """
    what = f"cannot {verb} {key} in {location}"
    try:
        yield
    except ClientError as error:
        raise _refused(client, location, what, key, error) from error
    except (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError) as error:
        raise StoreError(f"{what}: no S3 credentials ({_text(error)}): {CREDENTIALS}") from error
    except (ConnectionError, HTTPClientError, RetriesExceededError) as error:
        raise StoreError(
            f"{what}: no answer from {client.meta.endpoint_url} ({_text(error)}): "
            "check AWS_ENDPOINT_URL and the network, then try again"
        ) from error
    except BotoCoreError as error:
        raise StoreError(f"{what}: {_text(error)}") from error


def status_of(error: ClientError) -> int | None:
    """Return the HTTP status of an error; None if the answer has none."""
    return _answer(error).get("ResponseMetadata", {}).get("HTTPStatusCode")


def _answer(error: ClientError) -> Answer:
    return cast(Answer, error.response)


def _refused(client: S3Client, location: Location, what: str, key: str, error: ClientError) -> StoreError:
    status = status_of(error)
    code: str = _answer(error).get("Error", {}).get("Code", "")
    if code == "NoSuchBucket" or (code == "404" and _bucket_is_missing(client, location)):
        return StoreError(
            f"{what}: bucket {location.bucket} does not exist at {client.meta.endpoint_url}: "
            "create it or correct the URI"
        )
    if status == 404:
        return StoreMissing(f"no key {key} in {location}")
    if status == 412 or code == "ConditionalRequestConflict":
        return StoreConflict(f"{what}: another process wrote it first ({code}). Read it again, then retry")
    if status in (401, 403) or code in ("ExpiredToken", "InvalidToken", "TokenRefreshRequired"):
        return StoreError(f"{what}: permission denied ({code}): {CREDENTIALS}, and the bucket's policy")
    return StoreError(f"{what}: the server answered {status} {_text(error)}")


def _bucket_is_missing(client: S3Client, location: Location) -> bool:
    """Return whether the bucket does not exist. The 404 that a HEAD request gets does not tell bucket and key apart."""
    try:
        client.head_bucket(Bucket=location.bucket or "")
    except ClientError as error:
        return status_of(error) == 404
    except BotoCoreError:  # the connection has broken since the 404, which then counts as that of the key
        return False
    return False


def _text(error: BaseException) -> str:
    return one_line(str(error), limit=None)
