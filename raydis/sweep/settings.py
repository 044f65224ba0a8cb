"""The settings of a trial: values for dotted keys of the run, which replace those of the base run."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping
from typing import Any

from raydis.config import RunConfig
from raydis.config.files import Tree, field_paths, parse
from raydis.config.former import replacement

FIXED_SECTIONS = {
    "data": "scores on different data do not compare",
    "evaluation": "scores of different protocols do not compare",
    "compute": "trials differ by their settings, not by their machines",
}


def configure(base: RunConfig, settings: Mapping[str, Any]) -> RunConfig:
    """Return the base run with the values at some dotted keys replaced.

    Raises:
        ConfigError: the result is not a valid run.
    """
    tree: Tree = base.model_dump(mode="json")
    for key, value in settings.items():
        *above, last = key.split(".")
        node = tree
        for name in above:
            node = node.setdefault(name, {})
        node[last] = copy.deepcopy(value)
    return parse(RunConfig, tree, source=_text(settings) or "run")


def value_at(config: RunConfig, key: str) -> Any:
    """Return the value of a run at a dotted key, as JSON holds it."""
    value: Any = config.model_dump(mode="json")
    for name in key.split("."):
        value = value[name]
    return value


def check_key(key: str, where: str) -> None:
    """Raise ValueError if a run has no such key, or if it must be the same in all trials of a sweep."""
    section = key.split(".")[0]
    if section in FIXED_SECTIONS:
        raise ValueError(f"{where}: {key} must be the same in all trials ({FIXED_SECTIONS[section]}): set run.{key}")
    known = field_paths(RunConfig)
    if key not in known:
        if instead := replacement(key):
            raise ValueError(f"{where}: {key} {instead}")
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5) or [
            path for path in known if path.endswith(f".{key}")
        ]
        hint = f"did you mean {near[0]}?" if near else "use a dotted key of the run, as in method.num_units"
        raise ValueError(f"{where}: {key} is not a key of a run; {hint}")


def _text(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in settings.items())
