"""Identify the run that a command starts or continues, and record its configuration.

A run has a folder `train/NAME` in its storage. `run.json` in this folder records the configuration that the run was
started with, so that a later command with the same name cannot continue it with other values.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import re
from collections.abc import Mapping
from typing import Any

from raydis.checkpoint.migrate import migrate_config
from raydis.config import RunConfig
from raydis.config.identity import differences, listed, settings
from raydis.errors import ConfigError, RegistryError
from raydis.registry import locate_checkpoints
from raydis.store import Store, StoreConflict

log = logging.getLogger(__name__)

RUN_FILE = "run.json"


def default_name(config: RunConfig) -> str:
    """Return the default name: the data set and a hash of the settings that differ from their defaults.

    Two configurations therefore never share a run by accident. Defaults are not hashed, so that the name stays the same
    in a version that adds a field.
    """
    text = json.dumps(settings(config), sort_keys=True)
    return f"{config.data.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def run_name(store: Store, config: RunConfig) -> str:
    """Return the default name, or the name of an unnamed run of this configuration that an older raydis has started.

    Older versions hashed all values including defaults, or the values that were set under keys that have other names
    today. Such runs are found by comparing their recorded configurations.
    """
    name, prefix = default_name(config), f"train/{config.data.name}-"
    if store.exists(_key(name)):
        return name
    for key in store.list(prefix):
        if re.fullmatch(rf"{re.escape(prefix)}[0-9a-f]{{12}}/{RUN_FILE}", key):
            recorded = json.loads(store.read(key))
            if not differences(_resolved(recorded), _as_recorded(config, recorded, store.uri)):
                return key.split("/")[1]
    return name


def claim(store: Store, name: str, config: RunConfig) -> RunConfig:
    """Record a run's configuration in its folder, or compare it with the recorded one.

    Returns:
        the configuration to train. A `name@alias` of a first stage or of a pre-trained model is replaced by the
            checkpoint that it referred to when the run was first started.

    Raises:
        ConfigError: the run was started with other values, which the message names.
        RegistryError: such a `name@alias` does not exist.
    """
    key = _key(name)
    if not store.exists(key):
        located = locate_checkpoints(config, store.uri)
        resolved = located.model_dump(mode="json", exclude={"compute"})
        record = json.dumps({"set": settings(config), "resolved": resolved}, indent=2).encode()
        with contextlib.suppress(StoreConflict):
            store.write(key, record, if_absent=True)
            return located
    recorded = json.loads(store.read(key))
    located = _as_recorded(config, recorded, store.uri)
    if found := differences(_resolved(recorded), located):
        raise ConfigError(
            f"run {name} in {store.uri}/train was started with another configuration (its {RUN_FILE}): "
            f"{listed(found)}. Use the recorded values to continue it, or choose another name"
        )
    with contextlib.suppress(RegistryError):  # the alias may have been deleted
        moved = locate_checkpoints(config, store.uri).checkpoints()
        for checkpoint, source in located.checkpoints().items():
            if moved[checkpoint] != source:
                asked = config.checkpoints()[checkpoint]
                log.warning(
                    "run %s continues with %s=%s, to which %s pointed at its start", name, checkpoint, source, asked
                )
    return located


def _resolved(recorded: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration in a run's record with today's keys. An older raydis wrote only this part."""
    return migrate_config(recorded.get("resolved", recorded))


def _as_recorded(config: RunConfig, recorded: Mapping[str, Any], storage: str) -> RunConfig:
    """Replace each `name@alias` by the recorded checkpoint, if the command names the same alias."""
    asked, resolved = recorded.get("set", {}), _resolved(dict(recorded))
    kept = {
        key: str(functools.reduce(lambda section, name: section[name], key.split("."), resolved))
        for key, checkpoint in config.checkpoints().items()
        if checkpoint == asked.get(key)
    }
    return locate_checkpoints(config.with_checkpoints(kept), storage)


def _key(name: str) -> str:
    return f"train/{name}/{RUN_FILE}"
