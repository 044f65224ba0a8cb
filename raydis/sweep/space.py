"""A sweep's search space in Optuna's terms. Define-by-run, so that a domain may come to depend on earlier values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import optuna

from raydis.sweep.domains import Choice, FloatRange, IntRange
from raydis.sweep.settings import value_at
from raydis.sweep.spec import SweepSpec


def suggest_settings(trial: optuna.Trial, search: Mapping[str, Any]) -> dict[str, Any]:
    """Draw a value for every searched key; keys are dotted paths in the run."""
    return {key: _suggest(trial, key, domain) for key, domain in search.items()}


def control_settings(spec: SweepSpec) -> dict[str, dict[str, Any]]:
    """All that each run of a control fixes, by its name: every searched key, at base unless it is set, and others."""
    base = {key: value_at(spec.run, key) for key in spec.search}
    return {name: base | settings for control in spec.controls for name, settings in control.runs().items()}


def as_point(search: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Optuna's parameters of a point of the space; None where the settings lie outside of it."""
    if set(settings) != set(search) or not all(domain.holds(settings[key]) for key, domain in search.items()):
        return None
    return {
        key: label(settings[key]) if isinstance(domain, Choice) else settings[key] for key, domain in search.items()
    }


def label(value: Any) -> Any:
    """A choice as Optuna can store it: a scalar as it is, a list or section as JSON."""
    return value if value is None or isinstance(value, bool | int | float | str) else json.dumps(value, sort_keys=True)


def _suggest(trial: optuna.Trial, key: str, domain: Any) -> Any:
    match domain:
        case IntRange(low=low, high=high, step=step, log=log):
            return trial.suggest_int(key, low, high, step=step, log=log)
        case FloatRange(low=low, high=high, log=log):
            return trial.suggest_float(key, low, high, log=log)
        case Choice(values=values):
            labels = [label(value) for value in values]
            return values[labels.index(trial.suggest_categorical(key, labels))]
