"""The standing: a single number, computed from the objectives of a sweep, by which trials and versions are ranked.

An objective is a number of a metric and the direction in which it is better. The standing of a trial or of a model
version is the mean of its objectives, each scaled from its range to [0, 1] and oriented so that higher is better (v
becomes 1 - v if lower is better). Progress, summary, promotion and printed results all use it. The trial with the
highest standing is always on the Pareto front.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import Field, ValidationInfo, field_validator

from raydis.config.section import Model
from raydis.errors import MetricError
from raydis.metrics.entry import Direction
from raydis.metrics.table import number_named, numbers

K = TypeVar("K")


class Objective(Model):
    """A number of a metric and the direction in which it is better."""

    metric: str = Field(description="Name of a metric's number, as listed in raydis/metrics/README.md.")
    direction: Direction = Field(
        default=None,  # pyright: ignore[reportArgumentType]  (the validator replaces it)
        validate_default=True,
        description="`max` if larger values are better, `min` if smaller ones are; default: the number's own.",
    )

    @field_validator("metric")
    @classmethod
    def _known(cls, metric: str) -> str:
        try:
            return number_named(metric).name
        except MetricError as error:
            raise ValueError(str(error)) from error

    @field_validator("direction", mode="before")
    @classmethod
    def _own(cls, direction: Any, info: ValidationInfo) -> Any:
        if direction is not None:
            return direction
        known = numbers().get(info.data.get("metric", ""))
        return known.direction if known else "max"  # an unknown metric is a problem of its own: one is enough

    def oriented(self, value: float) -> float:
        """Scale a value from the number's range to [0, 1], and orient it so that higher is better."""
        number = number_named(self.metric)
        share = (value - number.low) / (number.high - number.low)
        return share if self.direction == "max" else 1.0 - share


DEFAULT_OBJECTIVES = (Objective(metric="dci_disentanglement"), Objective(metric="factor_vae"))


def standing(values: Mapping[str, Any], objectives: Sequence[Objective]) -> float | None:
    """Return the standing of a trial or version, in [0, 1]. Higher is better.

    Args:
        values: numbers of metrics by name.
        objectives: at least one.

    Returns:
        The mean of the oriented numbers; None if one of them has no finite value (`missing` returns its name).
    """
    if missing(values, objectives):
        return None
    return sum(goal.oriented(values[goal.metric]) for goal in objectives) / len(objectives)


def best_of(candidates: Mapping[K, Mapping[str, Any]], objectives: Sequence[Objective]) -> K | None:
    """Return the candidate with the highest standing, the first of equals; None if no candidate has one.

    Args:
        candidates: for each candidate, the numbers of metrics by name.
        objectives: at least one.
    """
    standings = {key: standing(values, objectives) for key, values in candidates.items()}
    known = {key: value for key, value in standings.items() if value is not None}
    return max(known, key=lambda key: known[key], default=None)


def standing_spread(spread: Mapping[str, float] | None, objectives: Sequence[Objective]) -> float | None:
    """Return an upper bound of a standing's standard deviation; None if that of an objective is unknown.

    The bound is the mean of the objectives' standard deviations. Metrics of the same draw may be correlated (DCI's
    three numbers always are), and the standard deviation of the mean reaches the bound if the correlation is perfect.

    Args:
        spread: standard deviations by name of the number; None if none is known.
        objectives: at least one.
    """
    if missing(spread or {}, objectives):
        return None
    assert spread
    ranges = [number_named(goal.metric) for goal in objectives]
    return sum(spread[number.name] / (number.high - number.low) for number in ranges) / len(objectives)


def missing(values: Mapping[str, Any], objectives: Sequence[Objective]) -> str:
    """Return the first objective without a finite value as `NAME is VALUE`; empty if all have one."""
    for goal in objectives:
        value = values.get(goal.metric)
        if not isinstance(value, int | float) or not math.isfinite(value):
            return f"{goal.metric} is {value}"
    return ""


def describe(objectives: Sequence[Objective]) -> str:
    """Describe the standing in words, e.g. `mean of dci_disentanglement and 1 - mig`."""
    names: list[str] = []
    for goal in objectives:
        number = number_named(goal.metric)
        scaled = "" if (number.low, number.high) == (0.0, 1.0) else f" (scaled from {number.low:g} to {number.high:g})"
        names.append(f"{'' if goal.direction == 'max' else '1 - '}{goal.metric}{scaled}")
    *most, last = names
    return f"mean of {', '.join(most)} and {last}" if most else last


def with_spread(value: float, spread: float | None) -> str:
    """Write a number as `0.555 ± 0.012`, or as `0.555` if its standard deviation is unknown."""
    return f"{value:.3f}" if spread is None else f"{value:.3f} ± {spread:.3f}"
