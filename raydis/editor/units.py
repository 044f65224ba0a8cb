"""Set, shift, swap and vary the units of images, as arrays and without a model.

B images, N units, D unit width, Q quantiles, V values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from raydis.errors import EditError
from raydis.metrics.telling import UnitLabel


@dataclass(frozen=True)
class Encoded:
    """The result of `Editor.encode` for B images.

    Attributes:
        units: (B, N) float32, one scalar for each unit. Edits change these.
        codes: (B, N, D) float32, the representation that is scored and that images are drawn from. If units are
            vectors, these hold more than `units`.
        facts: by name, (B, N) each: what the method states about a unit of an image beside its scalar.
    """

    units: np.ndarray
    codes: np.ndarray
    facts: dict[str, np.ndarray]


@dataclass(frozen=True)
class UnitInfo:
    """What is known about one unit.

    Attributes:
        low, median, high: the smallest value over the data, the median, and the largest.
        label: the factors that the unit describes.
        counts: what the method counts for the unit, by name.
    """

    index: int
    low: float
    median: float
    high: float
    label: UnitLabel
    counts: dict[str, int]


def describe_units(
    quantiles: np.ndarray, labels: Sequence[UnitLabel], counts: Mapping[str, Sequence[int]]
) -> list[UnitInfo]:
    """Return what is known about each unit, in order.

    Args:
        quantiles: (N, Q), quantiles of each unit over the data, evenly spaced in rank.
        labels: N labels.
        counts: by name, N numbers each.
    """
    middle = quantiles.shape[1] // 2
    return [
        UnitInfo(
            index,
            float(row[0]),
            float(row[middle]),
            float(row[-1]),
            label,
            {name: values[index] for name, values in counts.items()},
        )
        for index, (row, label) in enumerate(zip(quantiles, labels, strict=True))
    ]


def edited(units: np.ndarray, set: Mapping[int, float] | None, shift: Mapping[int, float] | None) -> np.ndarray:
    """Return a copy of scalars (B, N) with some set and some shifted.

    Raises:
        EditError: no such unit, or a unit that is both set and shifted.
    """
    units = units.copy()
    for index, value in (set or {}).items():
        units[:, checked(index, units.shape[1])] = value
    for index, amount in (shift or {}).items():
        if index in (set or {}):
            raise EditError(f"unit {index} is both set and shifted: give one of them")
        units[:, checked(index, units.shape[1])] += amount
    return units


def swapped(units: np.ndarray, donors: np.ndarray, chosen: Sequence[int]) -> np.ndarray:
    """Return a copy of units (B, N, ...) with the chosen ones of `donors`. Raises EditError for no such unit."""
    columns = [checked(index, units.shape[1]) for index in chosen]
    units = units.copy()
    units[:, columns] = donors[:, columns]
    return units


def swapped_each(units: np.ndarray, donor: np.ndarray) -> np.ndarray:
    """Return units (N, ...) N times, the i-th time with unit i of `donor`: (N, N, ...)."""
    rows, each = np.repeat(units[None], len(units), axis=0), np.arange(len(units))
    rows[each, each] = donor
    return rows


def traversed(units: np.ndarray, quantiles: np.ndarray, chosen: Sequence[int], num_values: int) -> np.ndarray:
    """Return scalars (N,) in which one chosen unit after the other varies: (len(chosen) * V, N).

    Args:
        quantiles: (N, Q), quantiles of each unit over the data, evenly spaced in rank from 0 to 1.
        chosen: the units to vary, each in V rows, in which the other units stay.
        num_values: V. The values are the quantiles from 2.5 % to 97.5 %, evenly spaced in rank.

    Raises:
        EditError: no such unit.
    """
    ranks, known = np.linspace(0.025, 0.975, num_values), np.linspace(0.0, 1.0, quantiles.shape[1])
    rows = np.repeat(units[None], len(chosen) * num_values, axis=0)
    for place, index in enumerate(chosen):
        walk = np.interp(ranks, known, quantiles[checked(index, len(units))])
        rows[place * num_values : (place + 1) * num_values, index] = walk
    return rows


def checked(index: int, num_units: int) -> int:
    """Return the index of a unit. Raises EditError where there is no such unit."""
    if not 0 <= index < num_units:
        raise EditError(f"no unit {index}: this model has units 0 to {num_units - 1}")
    return index
