"""The identity of a run: which settings determine its name, and whether two configurations describe the same run.

The name of a run depends on the values that differ from their defaults, so that it stays the same if a later version of
raydis adds a field. Keys are dotted (`train.learning_rate`), and values are in their JSON form. The section `compute`
(the hardware) is not part of the identity.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from raydis.config import RunConfig
from raydis.config.tree import is_tree

APART = "compute"
MOST_NAMED = 6


def settings(config: RunConfig) -> dict[str, Any]:
    """Return every value that differs from its default, by key, in the order of the configuration.

    If a section (a first stage, a method) is of another kind than the default, the result also contains its `kind`,
    although the section itself has that as a default.
    """
    return {key: value for key, value in _set(config, None, "") if key.partition(".")[0] != APART}


def differences(was: Mapping[str, Any], now: RunConfig) -> list[str]:
    """Describe how a configuration differs from that of an earlier run, one entry for each key.

    Args:
        was: the whole configuration of the earlier run in JSON form, perhaps of another version of raydis. A key that
            it lacks counts as different only if `now` sets it to something other than its default.
        now: the configuration to compare.
    """
    return list(_differences(was, now, settings(now), ""))


def listed(found: list[str]) -> str:
    """Join differences to one line for an error message, at most MOST_NAMED of them and the number of the others."""
    more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    return "; ".join(found[:MOST_NAMED]) + more


def _set(section: BaseModel, default: BaseModel | None, prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield the settings of a section that differ from `default` of the same class, else from the class's defaults."""
    dumped = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        value, key = getattr(section, name), prefix + name
        usual = getattr(default, name) if default else field.get_default(call_default_factory=True)
        if isinstance(value, BaseModel):
            same = isinstance(usual, BaseModel) and type(usual) is type(value)
            if not same:
                yield from ((f"{key}.{tag}", getattr(value, tag)) for tag in _tags(value))
            yield from _set(value, usual if same else None, f"{key}.")
        elif value != usual:
            yield key, dumped[name]


def _differences(was: Mapping[str, Any], now: BaseModel, chosen: Mapping[str, Any], prefix: str) -> Iterator[str]:
    dumped = now.model_dump(mode="json")
    if other := [tag for tag in _tags(now) if was.get(tag, dumped[tag]) != dumped[tag]]:
        yield from (_changed(prefix + tag, was[tag], dumped[tag], "") for tag in other)
        return  # sections of different kinds share few keys
    for name in type(now).model_fields:
        key, value, before = prefix + name, getattr(now, name), was.get(name)
        if key == APART:
            continue
        if isinstance(value, BaseModel) and is_tree(before):
            yield from _differences(before, value, chosen, f"{key}.")
        elif name not in was:
            below = {k: v for k, v in chosen.items() if k == key or k.startswith(f"{key}.")}
            yield from (f"{k} was not there, is {json.dumps(v)}" for k, v in below.items())
        elif before != dumped[name]:
            yield _changed(key, before, dumped[name], "" if key in chosen else " by default")
    for name in was.keys() - type(now).model_fields.keys() - {APART}:
        yield f"{prefix}{name} was {json.dumps(was[name])}, which this version of raydis does not know"


def _changed(key: str, before: Any, after: Any, by: str) -> str:
    return f"{key} was {json.dumps(before)}, is {json.dumps(after)}{by}"


def _tags(section: BaseModel) -> list[str]:
    """Return the fields with one allowed value (such as `kind`), which distinguish the members of a union."""
    return [name for name, field in type(section).model_fields.items() if _is_tag(field)]


def _is_tag(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1
