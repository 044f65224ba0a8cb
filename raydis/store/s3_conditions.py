"""Check that a server honours conditional writes. Several servers answer 200 to such a PUT and ignore the condition.

With such a server, two processes could hold the same lease. Before its first conditional write, a process therefore
tests the conditions, once for each bucket. A process that only reads never writes anything.
"""

# boto3 has no types
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import contextlib
import logging
import secrets
import threading

from botocore.exceptions import ClientError

from raydis.errors import StoreConflict, StoreError, StoreMissing
from raydis.store.base import RESERVED_PREFIX, check_key
from raydis.store.location import Location
from raydis.store.s3_client import Address, Condition, S3Client, tag_of
from raydis.store.s3_errors import status_of, translated_errors

log = logging.getLogger(__name__)

NO_SUCH_TAG = "0" * 32  # no object has it
ADVICE = (
    "Use a server that implements conditional writes (AWS S3, Ceph RGW 18), a newer version of this one, or a folder "
    "that all machines share"
)

_proved: set[tuple[str, str]] = set()  # endpoint and bucket of each server that this process has tested
_proving = threading.Lock()


def prove_conditions(client: S3Client, location: Location, key: str) -> None:
    """Test conditional writes, once in a process for each bucket, in the folder of the key that is to be written.

    The test takes five small requests. Its object has a new name each time, so that processes do not interfere. The
    object is hidden from `list`, and deleted at the end. If the credentials do not allow that, a warning is logged.

    Raises:
        StoreError: the server ignores conditions or does not implement them; the message says what to do.
    """
    bucket = location.bucket or ""
    server = (client.meta.endpoint_url, bucket)
    with _proving:
        if server in _proved:
            return
        folder = check_key(key).rpartition("/")[0]
        name = f"{folder}/{RESERVED_PREFIX}probe-{secrets.token_hex(8)}".lstrip("/")
        address: Address = {"Bucket": bucket, "Key": f"{location.path}/{name}".lstrip("/")}
        _Probe(client, location, name, address).run()
        _proved.add(server)


class _Probe:
    """An object with a new name on which the conditions are tested.

    Attributes:
        name: its key in the store, for messages.
        address: its bucket and its key there.
    """

    def __init__(self, client: S3Client, location: Location, name: str, address: Address) -> None:
        self._client = client
        self._location = location
        self.name = name
        self.address = address

    def run(self) -> None:
        """Test all conditions. Raises StoreError if the server does not honour one of them."""
        with self._translated_errors("write"):
            tag = tag_of(self._client.put_object(**self.address, Body=b""))
        try:
            if self._writes_if({"IfNoneMatch": "*"}):
                raise self._no_conditions("it overwrote an object in spite of If-None-Match")
            if self._writes_if({"IfMatch": NO_SUCH_TAG}):
                raise self._no_conditions("it overwrote an object in spite of If-Match with another tag")
            if not self._writes_if({"IfMatch": tag}):
                raise self._no_conditions("it refused If-Match with the object's own tag")
        finally:
            self._remove()

    def _writes_if(self, condition: Condition) -> bool:
        """Return whether the server writes the object under a condition."""
        try:
            with self._translated_errors("write"):
                try:
                    self._client.put_object(**self.address, **condition, Body=b"")
                except ClientError as error:
                    if status_of(error) == 501:
                        header = "If-None-Match" if "IfNoneMatch" in condition else "If-Match"
                        raise self._no_conditions(f"it answered 501 to {header}") from error
                    raise
        except (StoreConflict, StoreMissing):
            return False
        return True

    def _remove(self) -> None:
        try:
            with self._translated_errors("delete"):
                self._client.delete_object(**self.address)
        except StoreError as error:
            log.warning("%s. The object is empty and remains in the bucket; raydis does not list it", error)

    def _translated_errors(self, verb: str) -> contextlib.AbstractContextManager[None]:
        return translated_errors(self._client, self._location, verb, self.name)

    def _no_conditions(self, found: str) -> StoreError:
        return StoreError(
            f"{self._client.meta.endpoint_url} does not implement conditional writes: {found}. Processes at the same "
            f"time would overwrite each other's work in {self._location}. {ADVICE}"
        )
