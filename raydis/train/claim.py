"""Which run a command means: its name, and the values that the run was started with."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
from collections.abc import Mapping
from typing import Any

from raydis.checkpoint.migrate import migrate_config
from raydis.config import RunConfig
from raydis.config.first_stage import LearnedStage
from raydis.config.identity import differences, listed, settings
from raydis.errors import ConfigError, RegistryError
from raydis.registry import locate_first_stage
from raydis.store import Store, StoreConflict

log = logging.getLogger(__name__)

RUN_FILE = "run.json"
STAGE = "first_stage.checkpoint"


def default_name(config: RunConfig) -> str:
    """Return the data set and a hash of what was set: two configurations never share a run by accident.

    Defaults are no part of it, so that the name outlives a version that adds a field.
    """
    text = json.dumps(settings(config), sort_keys=True)
    return f"{config.data.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def run_name(store: Store, config: RunConfig) -> str:
    """Return the default name, or that of an unnamed run of this very configuration that an earlier raydis started.

    Those versions made the name from all values, defaults too, which cannot be repeated once there are more; or from
    the values that were set, under keys that have other names today.
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
    """Note a run's configuration in its folder, or compare it with the one that is there.

    Returns:
        the configuration to train. A `name@alias` in it is the version that it named when the run was first started.

    Raises:
        ConfigError: the run was started with other values, which are named.
        RegistryError: a first stage's `name@alias` that does not exist.
    """
    key = _key(name)
    if not store.exists(key):
        located = locate_first_stage(config, store.uri)
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
            f"{listed(found)}. Set what it was to go on, or choose another name"
        )
    with contextlib.suppress(RegistryError):  # the alias may be gone by now
        if locate_first_stage(config, store.uri) != located:
            source, asked = settings(located)[STAGE], settings(config)[STAGE]
            log.warning("run %s goes on with %s=%s, which %s named when it began", name, STAGE, source, asked)
    return located


def _resolved(recorded: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration in a run's record, in today's words. An earlier raydis wrote nothing else."""
    return migrate_config(recorded.get("resolved", recorded))


def _as_recorded(config: RunConfig, recorded: Mapping[str, Any], storage: str) -> RunConfig:
    """Return the configuration with the first stage that the run began with, if the command still says the same."""
    stage, asked = config.first_stage, settings(config).get(STAGE)
    if not isinstance(stage, LearnedStage) or asked != recorded.get("set", {}).get(STAGE):
        return locate_first_stage(config, storage)
    source = recorded["resolved"]["first_stage"]["checkpoint"]
    return config.model_copy(update={"first_stage": stage.model_copy(update={"checkpoint": source})})


def _key(name: str) -> str:
    return f"train/{name}/{RUN_FILE}"
