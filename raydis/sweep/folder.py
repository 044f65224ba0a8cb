"""The folder of a sweep, `sweeps/NAME` below its storage: its name, and the specification that it was begun with."""

from __future__ import annotations

import json
import re
from typing import Any

from raydis.config.identity import listed
from raydis.errors import ConfigError
from raydis.store import Store, StoreMissing
from raydis.sweep.difference import spec_differences
from raydis.sweep.files import SPEC_FILE
from raydis.sweep.spec import NAME, SweepSpec


def sweep_key(name: str) -> str:
    """Return the key of a sweep's folder. Raises ConfigError if the name is not allowed."""
    if not re.fullmatch(NAME, name):
        raise ConfigError(f"sweep name {name[:80]!r} is not allowed: up to 64 letters, digits, '.', '_' and '-'")
    return f"sweeps/{name}"


def default_name(store: Store, spec: SweepSpec, *, fresh: bool = False) -> str:
    """Return the name of a sweep that the user has not named: the name in its spec.

    With `fresh`, return the first of NAME, NAME-2, NAME-3, ... that no sweep has. Otherwise return the last one that a
    sweep has, so that the same command continues it.
    """
    names = [spec.name]
    while read_spec(store, names[-1]) is not None:
        names.append(f"{spec.name}-{len(names) + 1}")
    return names[-1] if fresh or len(names) == 1 else names[-2]


def read_spec(store: Store, name: str) -> dict[str, Any] | None:
    """Return the specification that a sweep was begun with, in JSON form; None if there is no sweep of this name."""
    key = f"{sweep_key(name)}/{SPEC_FILE}"
    try:
        tree = json.loads(store.read(key))
    except StoreMissing:
        return None
    except ValueError:
        tree = None
    if not isinstance(tree, dict):
        raise ConfigError(f"{key} in {store.uri} is damaged: choose another --name")
    return tree


def check_spec(store: Store, name: str, spec: SweepSpec) -> None:
    """Check that a sweep that was begun goes on with its own specification.

    Raises:
        ConfigError: the specification differs; the message names the differences.
    """
    was = read_spec(store, name)
    found = [] if was is None else spec_differences(was, spec)
    if found:
        raise ConfigError(
            f"sweep {name} in {store.uri} was begun with another specification: {listed(found)}. Continue it with its "
            "own, begin another one with --fresh, or choose another --name"
        )


def write_spec(store: Store, name: str, spec: SweepSpec) -> None:
    """Write the specification of a sweep that begins, or that goes on with more trials."""
    store.write(f"{sweep_key(name)}/{SPEC_FILE}", spec.model_dump_json(indent=2).encode())
