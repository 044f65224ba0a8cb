"""The folder of a sweep, `sweeps/NAME` below its storage: its name is claimed once, and its study lies in it."""

from __future__ import annotations

from optuna.storages import BaseStorage

from raydis.errors import ConfigError
from raydis.store import Store, StoreConflict
from raydis.sweep.searcher import journal
from raydis.sweep.spec import SweepSpec

SPEC_FILE = "spec.json"
STUDY_FILE = "optuna.journal"


def claim(store: Store, key: str, spec: SweepSpec) -> None:
    """Write the spec under the sweep's name, unless another sweep was faster."""
    try:
        store.write(f"{key}/{SPEC_FILE}", spec.model_dump_json(indent=2).encode(), if_absent=True)
    except StoreConflict as error:
        raise taken(store, key) from error


def taken(store: Store, key: str) -> ConfigError:
    """Return the error that another sweep has this name."""
    return ConfigError(f"{key} exists in {store.uri}: choose another --name")


def study_storage(store: Store, key: str) -> BaseStorage | None:
    """Return where Optuna keeps the study: a file in a local folder, else (None) this process' memory."""
    folder = store.location.folder
    return journal(folder / key / STUDY_FILE) if folder else None
