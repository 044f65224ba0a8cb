"""Compare the specification of a sweep with the one that it was begun with.

A sweep goes on only with the specification that it was begun with, because the results of its trials would not compare
otherwise. These keys may change: `max_concurrent`, `max_failures`, `promotion` and `run.compute`. There may be more
trials and further controls.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from raydis.checkpoint.migrate import migrate_config
from raydis.config import RunConfig
from raydis.config.identity import differences
from raydis.config.tree import flattened
from raydis.registry import names_version
from raydis.sweep.spec import SweepSpec

FREE = ("max_concurrent", "max_failures", "promotion")
APART = ("run", "controls", "num_trials")  # compared in ways of their own
MISSING = "not there"


def spec_differences(was: Mapping[str, Any], now: SweepSpec) -> list[str]:
    """Return the differences that keep a sweep from going on, one entry for each key.

    Args:
        was: the specification that it was begun with, in JSON form, perhaps of another version of raydis.
        now: the specification to go on with.
    """
    tree = now.model_dump(mode="json")
    found = list[str]()
    for key in tree:
        if key not in (*FREE, *APART) and was.get(key, tree[key]) != tree[key]:
            found += _changes(key, was[key], tree[key])
    found += [f"run.{line}" for line in differences(migrate_config(dict(was.get("run", {}))), now.run)]
    controls = {control["name"]: control for control in tree["controls"]}
    for before in was.get("controls", ()):
        found += _changes(f"controls.{before['name']}", before, controls.get(before["name"], MISSING))
    if now.num_trials < was.get("num_trials", 0):
        found.append(f"num_trials was {was['num_trials']}, is {now.num_trials}, and may only grow")
    return found


def as_recorded(run: RunConfig, was: Mapping[str, Any]) -> RunConfig:
    """Return a run in which `name@alias` is the version of this model that a sweep was begun with.

    The alias may have moved in the meantime, but the trials of a sweep must all borrow the same weights.
    """
    recorded = dict(flattened(was.get("run", {})))
    kept = dict[str, str]()
    for key, asked in run.checkpoints().items():
        model, _, version = asked.partition("@")
        before = str(recorded.get(key, ""))
        if names_version(asked) and not version.isdecimal() and f"/registry/{model}/versions/" in before:
            kept[key] = before
    return run.with_checkpoints(kept)


def _changes(key: str, before: Any, after: Any) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        for name in dict.fromkeys([*before, *after]):
            yield from _changes(f"{key}.{name}", before.get(name, MISSING), after.get(name, MISSING))
    elif before != after:
        yield f"{key} was {_shown(before)}, is {_shown(after)}"


def _shown(value: Any) -> str:
    return value if value == MISSING else json.dumps(value)
