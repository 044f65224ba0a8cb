"""Bytes under keys: a local folder or S3, behind one protocol."""

from __future__ import annotations

from raydis.errors import StoreConflict, StoreError, StoreMissing
from raydis.store.base import Store
from raydis.store.local import LocalStore
from raydis.store.uri import open_store, split_uri

__all__ = ["LocalStore", "Store", "StoreConflict", "StoreError", "StoreMissing", "open_store", "split_uri"]
