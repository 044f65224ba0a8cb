"""Open the store at a location."""

from __future__ import annotations

from raydis.store.base import Store
from raydis.store.local import LocalStore
from raydis.store.location import Location


def open_store(place: str | Location) -> Store:
    """Return the store at `s3://bucket/prefix`, `file:///folder` or a local path.

    This contacts no server and creates nothing.

    Raises:
        StoreError: see `Location.parse`.
    """
    location = place if isinstance(place, Location) else Location.parse(place)
    if location.bucket is None:
        return LocalStore(location.path)
    from raydis.store.s3 import S3Store  # boto3 takes half a second to import

    return S3Store(location.bucket, location.path)
