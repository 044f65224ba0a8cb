"""The units of images and what edits make of them, as arrays: no model is asked here. B images, N units, V values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from raydis.errors import EditError
from raydis.metrics.telling import UnitLabel


@dataclass(frozen=True)
class Encoded:
    """What `Editor.encode` says of B images."""

    units: np.ndarray  # (B, N) float32, the units' scalars
    codes: np.ndarray  # (B, N, D) float32, what conditions the decoder
    facts: dict[str, np.ndarray]  # (B, N) each: what the method states of units beside their numbers, by name


@dataclass(frozen=True)
class UnitInfo:
    """What is known of one unit: its range over the data, what it tells, and what its method counts of it."""

    index: int
    low: float
    median: float
    high: float
    label: UnitLabel
    counts: dict[str, int]


def describe_units(
    quantiles: np.ndarray, labels: Sequence[UnitLabel], counts: Mapping[str, Sequence[int]]
) -> list[UnitInfo]:
    """Return what is known of each unit, in order.

    Args:
        quantiles: of each unit over the data, evenly spaced in rank, (N, Q).
        labels: N of them.
        counts: what the method counts, by name, N numbers each.
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
        EditError: no such unit, or one that is both set and shifted.
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
    """Return a copy of scalars (B, N) with the chosen units of others of the same shape. Raises EditError."""
    columns = [checked(index, units.shape[1]) for index in chosen]
    units = units.copy()
    units[:, columns] = donors[:, columns]
    return units


def swapped_each(units: np.ndarray, donor: np.ndarray) -> np.ndarray:
    """Return scalars (N,) N times, each time with one unit of another image's: (N, N), whose diagonal is theirs."""
    rows = np.repeat(units[None], len(units), axis=0)
    np.fill_diagonal(rows, donor)
    return rows


def traversed(units: np.ndarray, quantiles: np.ndarray, chosen: Sequence[int], num_values: int) -> np.ndarray:
    """Return scalars (N,) with each of the chosen units walking along its quantiles: (len(chosen) * V, N).

    Args:
        quantiles: of each unit over the data, evenly spaced in rank from 0 to 1, (N, Q).
        chosen: units, each of which walks in V rows while the others stay.
        num_values: V; from the 2.5 % to the 97.5 % quantile, evenly spaced in rank.

    Raises:
        EditError: no such unit.
    """
    ranks, levels = np.linspace(0.025, 0.975, num_values), np.linspace(0.0, 1.0, quantiles.shape[1])
    rows = np.repeat(units[None], len(chosen) * num_values, axis=0)
    for place, index in enumerate(chosen):
        walk = np.interp(ranks, levels, quantiles[checked(index, len(units))])
        rows[place * num_values : (place + 1) * num_values, index] = walk
    return rows


def checked(index: int, num_units: int) -> int:
    """Return the index of a unit. Raises EditError where there is no such unit."""
    if not 0 <= index < num_units:
        raise EditError(f"no unit {index}: this model has units 0 to {num_units - 1}")
    return index
