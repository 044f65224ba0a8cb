"""The domains of a search space: the values that a sweep may give to a key of the run.

A corner of the space is a point at which every key has an end of its range, or any one of its choices.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from raydis.config.section import Model

MAX_CORNERS = 1024
MAX_POINTS = 10_000


class IntRange(Model):
    """Integers from `low` to `high`, both included."""

    kind: Literal["int"]
    low: int
    high: int
    step: int = Field(default=1, ge=1, description="Distance between neighbours; only without log.")
    log: bool = Field(default=False, description="Draw evenly in the logarithm.")

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        _check_bounds(self.low, self.high, self.log)
        if self.log and self.step != 1:
            raise ValueError(f"step={self.step} does not go with log=true: remove one of them")
        if (self.high - self.low) % self.step:
            raise ValueError(f"high={self.high} cannot be reached from low={self.low} in steps of {self.step}")
        return self

    def ends(self) -> tuple[Any, ...]:
        """Return the values that this key has at corners of the space: the ends of the range."""
        return (self.low, self.high)

    def points(self) -> Sequence[Any] | None:
        """Return all values of this key; None if there are too many to list."""
        return range(self.low, self.high + 1, self.step)

    def holds(self, value: Any) -> bool:
        """Return whether a value lies in the range and on its steps."""
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole and self.low <= value <= self.high and (value - self.low) % self.step == 0


class FloatRange(Model):
    """Numbers from `low` to `high`."""

    kind: Literal["float"]
    low: float
    high: float
    log: bool = Field(default=False, description="Draw evenly in the logarithm.")

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        _check_bounds(self.low, self.high, self.log)
        return self

    def ends(self) -> tuple[Any, ...]:
        """Return the values that this key has at corners of the space: the ends of the range."""
        return (self.low, self.high)

    def points(self) -> Sequence[Any] | None:
        """Return all values of this key; None if there are too many to list."""
        return (self.low,) if self.low == self.high else None

    def holds(self, value: Any) -> bool:
        """Return whether a value lies in the range."""
        return isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high


class Choice(Model):
    """One of several values; a value may be a list or a whole section, which then replaces what was there."""

    kind: Literal["choice"]
    values: tuple[Any, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        labels = [json.dumps(value, sort_keys=True) for value in self.values]
        if len(set(labels)) != len(labels):
            raise ValueError(f"values {', '.join(labels)} are not distinct")
        return self

    def ends(self) -> tuple[Any, ...]:
        """Return the values that this key has at corners of the space: all choices."""
        return self.values

    def points(self) -> Sequence[Any] | None:
        """Return all values of this key; None if there are too many to list."""
        return self.values

    def holds(self, value: Any) -> bool:
        """Return whether a value is one of the choices."""
        return any(type(value) is type(known) and value == known for known in self.values)


Domain = Annotated[IntRange | FloatRange | Choice, Field(discriminator="kind")]


def corners(search: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the corners of the space as settings by key.

    If there are more than MAX_CORNERS, yield a fixed random part of them, in which every end of every key occurs.
    """
    ends = [domain.ends() for domain in search.values()]
    if int(np.prod([len(values) for values in ends], dtype=np.int64)) <= MAX_CORNERS:
        for values in itertools.product(*ends):
            yield dict(zip(search, values, strict=True))
        return
    rng, longest = np.random.default_rng(0), max(map(len, ends))
    for row in range(MAX_CORNERS):
        picks = [row % len(values) if row < longest else int(rng.integers(len(values))) for values in ends]
        yield {key: values[pick] for key, values, pick in zip(search, ends, picks, strict=True)}


def points(search: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Return all points of the space as settings by key; None if there are more than MAX_POINTS."""
    values = [domain.points() for domain in search.values()]
    found = [each for each in values if each is not None]
    if len(found) < len(values) or math.prod(map(len, found)) > MAX_POINTS:
        return None
    return [dict(zip(search, point, strict=True)) for point in itertools.product(*found)]


def _check_bounds(low: float, high: float, log: bool) -> None:
    if low > high:
        raise ValueError(f"empty range: low={low} is above high={high}")
    if log and low <= 0:
        raise ValueError(f"low={low} has no logarithm: raise low above 0 or set log=false")
