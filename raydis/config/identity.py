"""What makes two runs the same run: the values that were set, not the defaults of the version that ran them.

A key is dotted (`train.learning_rate`), a value what JSON makes of it. Where a run computes is no part of what it is.
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

    A section of another kind than the default one (a first stage, a method) says its kind, even where that is the
    default of the section itself.
    """
    return {key: value for key, value in _set(config, None, "") if key.partition(".")[0] != APART}


def differences(was: Mapping[str, Any], now: RunConfig) -> list[str]:
    """Return in words what a run would do differently from one that was started with other values.

    Args:
        was: a whole configuration as JSON holds it, perhaps of another version of raydis: a key that it lacks differs
            only where it is set now.
        now: the configuration to compare.
    """
    return list(_differences(was, now, settings(now), ""))


def listed(found: list[str]) -> str:
    """Join differences for an error of one line."""
    more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    return "; ".join(found[:MOST_NAMED]) + more


def _set(section: BaseModel, default: BaseModel | None, prefix: str) -> Iterator[tuple[str, Any]]:
    """Settings of a section, compared with another of its class, or with the class' own defaults."""
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
        return  # sections of two kinds have few keys in common
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
        yield f"{prefix}{name} was {json.dumps(was[name])}, which this raydis does not know"


def _changed(key: str, before: Any, after: Any, by: str) -> str:
    return f"{key} was {json.dumps(before)}, is {json.dumps(after)}{by}"


def _tags(section: BaseModel) -> list[str]:
    """Fields with one allowed value (such as `kind`), which tell the members of a union apart."""
    return [name for name, field in type(section).model_fields.items() if _is_tag(field)]


def _is_tag(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1
