"""The folder of a sweep, `sweeps/NAME` below its storage: reserve its name, and open the Optuna study in it."""

from __future__ import annotations

from optuna.storages import BaseStorage

from raydis.errors import ConfigError
from raydis.store import Store, StoreConflict
from raydis.sweep.files import SPEC_FILE, STUDY_FILE
from raydis.sweep.searcher import journal
from raydis.sweep.spec import SweepSpec


def claim(store: Store, key: str, spec: SweepSpec) -> None:
    """Reserve a sweep's name by writing its spec. Raises ConfigError if another sweep has this name."""
    try:
        store.write(f"{key}/{SPEC_FILE}", spec.model_dump_json(indent=2).encode(), if_absent=True)
    except StoreConflict as error:
        raise taken(store, key) from error


def taken(store: Store, key: str) -> ConfigError:
    """Return the error that says that another sweep has this name."""
    return ConfigError(f"{key} exists in {store.uri}: choose another --name")


def study_storage(store: Store, key: str) -> BaseStorage | None:
    """Return the storage of the Optuna study: a file in a local folder; None, for memory, if the store is not local."""
    folder = store.location.folder
    return journal(folder / key / STUDY_FILE) if folder else None
