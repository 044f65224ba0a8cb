"""Translate a sweep's search space to Optuna.

This uses Optuna's define-by-run interface, so that the domain of a key could be made to depend on values drawn before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import optuna

from raydis.sweep.domains import Choice, FloatRange, IntRange
from raydis.sweep.settings import value_at
from raydis.sweep.spec import SweepSpec


def suggest_settings(trial: optuna.Trial, search: Mapping[str, Any]) -> dict[str, Any]:
    """Return a value for every searched key, drawn by the trial's sampler. Keys are dotted paths in the run."""
    return {key: _suggest(trial, key, domain) for key, domain in search.items()}


def control_settings(spec: SweepSpec) -> dict[str, dict[str, Any]]:
    """Return the settings of each run of a control, by the run's name.

    They have a value for every searched key, which is that of the base run unless the control sets it, and for the
    other keys that the control sets.
    """
    base = {key: value_at(spec.run, key) for key in spec.search}
    return {name: base | settings for control in spec.controls for name, settings in control.runs().items()}


def as_point(search: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return settings as Optuna's parameters; None if they are not a point of the search space."""
    if set(settings) != set(search) or not all(domain.holds(settings[key]) for key, domain in search.items()):
        return None
    return {
        key: label(settings[key]) if isinstance(domain, Choice) else settings[key] for key, domain in search.items()
    }


def label(value: Any) -> Any:
    """Return a choice as Optuna can store it: a scalar unchanged, a list or section as JSON."""
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
