"""Storage of bytes under keys, with one interface for a local folder and for S3."""

from __future__ import annotations

from raydis.errors import StoreConflict, StoreError, StoreMissing
from raydis.store.base import Entry, Store
from raydis.store.local import LocalStore
from raydis.store.location import Location, split_uri
from raydis.store.open import open_store

__all__ = [
    "Entry",
    "LocalStore",
    "Location",
    "Store",
    "StoreConflict",
    "StoreError",
    "StoreMissing",
    "open_store",
    "split_uri",
]
