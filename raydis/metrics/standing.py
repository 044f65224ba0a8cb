"""What "best" means: the one definition that progress, summary, promotion and printed results read.

An objective is a number of a metric and the direction in which it is better. The objectives of a sweep alone decide a
trial's standing, and a model version's: the mean of the numbers, each scaled from its range to [0, 1] and turned so
that higher is better (v becomes 1 - v where lower is better). The trial of highest standing is always on the Pareto
front.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import Field, ValidationInfo, field_validator

from raydis.config.section import Model
from raydis.errors import MetricError
from raydis.metrics.table import Direction, number_named, numbers

K = TypeVar("K")


class Objective(Model):
    """A number of a metric and the direction in which it is better."""

    metric: str = Field(description="Name of the number, as the table in raydis/metrics/README.md lists them.")
    direction: Direction = Field(
        default=None,  # pyright: ignore[reportArgumentType]  (the validator replaces it)
        validate_default=True,
        description="Whether larger or smaller is better; if it is not given, the number's own direction.",
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
        """Scale a value from the number's range to [0, 1], and turn it so that higher is better."""
        number = number_named(self.metric)
        share = (value - number.low) / (number.high - number.low)
        return share if self.direction == "max" else 1.0 - share


DEFAULT_OBJECTIVES = (Objective(metric="dci_disentanglement"), Objective(metric="factor_vae"))


def standing(values: Mapping[str, Any], objectives: Sequence[Objective]) -> float | None:
    """Return the number that ranks trials and versions, in [0, 1]; higher is better.

    Args:
        values: metrics by name.
        objectives: what counts, at least one.

    Returns:
        The mean of the oriented numbers; None where one of them has no finite value (`missing` says which).
    """
    if missing(values, objectives):
        return None
    return sum(goal.oriented(values[goal.metric]) for goal in objectives) / len(objectives)


def best_of(candidates: Mapping[K, Mapping[str, Any]], objectives: Sequence[Objective]) -> K | None:
    """Return the candidate of highest standing, the first of equals; None where none has a standing.

    Args:
        candidates: the metrics of each by name.
        objectives: what counts, at least one.
    """
    standings = {key: standing(values, objectives) for key, values in candidates.items()}
    known = {key: value for key, value in standings.items() if value is not None}
    return max(known, key=lambda key: known[key], default=None)


def standing_spread(spread: Mapping[str, float] | None, objectives: Sequence[Objective]) -> float | None:
    """Return an upper bound of a standing's standard deviation; None where that of a metric is unknown.

    It is the mean of the metrics' own. Metrics of the same draw may move together (DCI's three always do), and the
    standard deviation of a mean is largest, and equal to this, where they do so fully.

    Args:
        spread: standard deviation of each metric by name; None where none is known.
        objectives: what counts, at least one.
    """
    if missing(spread or {}, objectives):
        return None
    assert spread
    ranges = [number_named(goal.metric) for goal in objectives]
    return sum(spread[number.name] / (number.high - number.low) for number in ranges) / len(objectives)


def missing(values: Mapping[str, Any], objectives: Sequence[Objective]) -> str:
    """Return the first metric without a finite value as `NAME is VALUE`; empty where all have one."""
    for goal in objectives:
        value = values.get(goal.metric)
        if not isinstance(value, int | float) or not math.isfinite(value):
            return f"{goal.metric} is {value}"
    return ""


def describe(objectives: Sequence[Objective]) -> str:
    """Name the standing in words, e.g. `mean of dci_disentanglement and 1 - mig`."""
    names: list[str] = []
    for goal in objectives:
        number = number_named(goal.metric)
        scaled = "" if (number.low, number.high) == (0.0, 1.0) else f" (scaled from {number.low:g} to {number.high:g})"
        names.append(f"{'' if goal.direction == 'max' else '1 - '}{goal.metric}{scaled}")
    *most, last = names
    return f"mean of {', '.join(most)} and {last}" if most else last


def with_spread(value: float, spread: float | None) -> str:
    """Write a number as `0.555 ± 0.012`, or `0.555` where its standard deviation is unknown."""
    return f"{value:.3f}" if spread is None else f"{value:.3f} ± {spread:.3f}"
